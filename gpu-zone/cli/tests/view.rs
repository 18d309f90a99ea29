//! What a program sees of the host: the system, its working directory, what it was given, and
//! nothing of its user's or of others'.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use gpuzone_testkit::hostile::host_has_zones;
    use gpuzone_testkit::{Finished, Node, Options, Running};

    const LIMIT: Duration = Duration::from_secs(30);

    fn make(folder: &Path) {
        for (file, text) in [
            ("home/secret", "a key"),
            ("home/project/own", "mine"),
            ("data/set", "numbers"),
            ("neighbour/model", "theirs"),
        ] {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::write(folder.join(file), text).unwrap();
        }
    }

    fn shell(node: &Node, words: &[String], script: &str) -> Finished {
        let lease = ["run", "--tenant", "acme", "--memory", "1Gi"].map(String::from);
        let program = ["--", "/bin/sh", "-c", script].map(String::from);
        let mut command = node.cli(lease.iter().chain(words).chain(&program)).unwrap();
        let home = node.folder().join("home");
        command.current_dir(home.join("project")).env("HOME", home);
        Running::start(command).unwrap().finish(LIMIT).unwrap()
    }

    #[test]
    fn homes_and_neighbours_are_not_shown_and_volumes_are() {
        if !host_has_zones().unwrap() {
            println!("skipped: homes_and_neighbours_are_not_shown_and_volumes_are: no zones here");
            return;
        }
        let node = Node::start(&Options::default()).unwrap();
        let folder = node.folder();
        make(folder);
        let data = folder.join("data");
        let neighbour = folder.join("neighbour/model");
        let script = format!(
            "ls -A $HOME; cat $HOME/secret {} /home/* 2>/dev/null; cat own; echo more >> own; \
             cat {data}/set; echo x 2>/dev/null > {data}/new && echo WRITTEN; \
             cat /in/set && echo y > /in/result; echo z > $HOME/cache && echo cached",
            neighbour.display(),
            data = data.display(),
        );
        let volumes = ["--volume".to_owned(), format!("{}:ro", data.display())];
        let volumes =
            [volumes, ["--volume".to_owned(), format!("{}:/in", data.display())]].concat();
        let finished = shell(&node, &volumes, &script);
        assert_eq!(finished.code(), Some(0), "{}", finished.text());
        assert_eq!(finished.stdout, "project\nminenumbersnumberscached\n", "{}", finished.stderr);
        // What it was to write is the host's, and what was its own is gone.
        assert_eq!(fs::read_to_string(data.join("result")).unwrap(), "y\n");
        assert_eq!(fs::read_to_string(folder.join("home/project/own")).unwrap(), "minemore\n");
        assert!(!folder.join("home/cache").exists());
        // Who wants all of the host's files says so.
        let all = ["--rootfs".to_owned(), "host".to_owned()];
        let finished = shell(&node, &all, "cat /proc/sys/kernel/ostype; ls -d /var/lib");
        assert_eq!(finished.stdout, "Linux\n/var/lib\n", "{}", finished.stderr);
        node.remove().unwrap();
    }
}
