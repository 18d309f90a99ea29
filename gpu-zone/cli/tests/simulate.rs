//! `gpu-zone simulate`: a trace in, figures and a drawing out, and a sentence for a bad table.

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\n\
        a,32000,65536,2,P100\nb,32000,65536,2,P100\nc,32000,65536,4,T4\n";
    const PODS_HEAD: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,tenant\n";

    /// Eight GPUs in all, and pods of two tenants: of `red` 12 halves, which fit; of `blue` one
    /// whole T4, which fits, and one pod for five GPUs, which no node has.
    fn pods() -> String {
        let mut pods = PODS_HEAD.to_owned() + "b0,1000,1024,1,1000,T4,blue\n";
        for n in 0..12 {
            let _ = writeln!(pods, "r{n},1000,1024,1,500,,red");
        }
        pods + "b1,1000,1024,5,1000,,blue\nb2,1000,1024,0,0,,blue\n"
    }

    fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn simulate(nodes: &Path, pods: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone"));
        command.args(["simulate", "--nodes"]).arg(nodes).arg("--pods").arg(pods).args(more);
        command.output().unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn prints_what_was_placed_and_who_got_what() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = file(folder.path(), "nodes.csv", NODES);
        let pods = file(folder.path(), "pods.csv", &pods());
        for policy in ["pack", "spread", "fragmentation"] {
            let done = simulate(&nodes, &pods, &["--policy", policy, "--format", "json"]);
            assert!(done.status.success(), "{}", text(&done.stderr));
            let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(
                [&json["capacity_gpu_milli"], &json["asked_gpu_milli"], &json["placed_gpu_milli"]],
                [8000, 12_000, 7000],
                "{json}"
            );
            let blue = serde_json::json!({
                "tenant": "blue", "pods": 3, "dropped": 1,
                "asked_gpu_milli": 6000, "placed_gpu_milli": 1000,
            });
            assert_eq!(json["tenants"][0], blue);
            assert_eq!(json["tenants"][1]["dropped"], 0, "{json}");
            // Jain's index of 1/6 and 1.
            let fairness = json["fairness"].as_f64().unwrap();
            assert!((fairness - 49.0 / 74.0).abs() < 1e-9, "{fairness}");
        }
        let done = simulate(&nodes, &pods, &[]);
        let shown = text(&done.stdout);
        assert!(
            shown.starts_with("policy fragmentation: 7.000 of 8.000 GPUs allocated (87.50 %)"),
            "{shown}"
        );
    }

    #[test]
    fn the_same_seed_prints_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = file(folder.path(), "nodes.csv", NODES);
        let pods = file(folder.path(), "pods.csv", &pods());
        let [first, second] = [0, 1].map(|_| simulate(&nodes, &pods, &["--seed", "7"]).stdout);
        assert_eq!(first, second);
    }

    /// The names of the elements of `xml`, which must nest and close; attributes in quotes.
    fn elements(xml: &str) -> Vec<String> {
        let (mut open, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for piece in xml.split('<').skip(1) {
            let (tag, after) = piece.split_once('>').unwrap();
            assert!(!after.contains('>'), "a loose '>': {after}");
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes: {tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let name = tag.split([' ', '/']).next().unwrap().to_owned();
            all.push(name.clone());
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
        all
    }

    #[test]
    fn draws_a_well_formed_line_that_rises_to_what_was_placed() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = file(folder.path(), "nodes.csv", NODES);
        let pods = file(folder.path(), "pods.csv", &pods());
        let svg = folder.path().join("out.svg");
        let done = simulate(&nodes, &pods, &["--svg", svg.to_str().unwrap()]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let drawing = fs::read_to_string(&svg).unwrap();
        let elements = elements(&drawing);
        assert_eq!(elements.first().map(String::as_str), Some("svg"));
        assert_eq!(elements.iter().filter(|name| *name == "polyline").count(), 1);
        let points = drawing.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let points: Vec<(f64, f64)> = points
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert!(points.len() >= 15, "one for each pod: {points:?}");
        // Down is up in a drawing.
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1));
        assert!(points.first().unwrap().1 > points.last().unwrap().1 + 100.0);
        let no_folder = folder.path().join("none/out.svg");
        let refused = simulate(&nodes, &pods, &["--svg", no_folder.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(64));
        assert!(text(&refused.stderr).contains("cannot write"), "{}", text(&refused.stderr));
    }

    #[test]
    fn a_bad_table_is_refused_with_its_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let good = file(folder.path(), "nodes.csv", NODES);
        let pods = |rows: &str| format!("{PODS_HEAD}p,1,1,1,500,,a\n{rows}\n");
        for (rows, says) in [
            ("q,1,1,1,half,,a", "line 3, column gpu_milli"),
            ("q,-1,1,1,500,,a", "line 3, column cpu_milli"),
            ("q,1,1,1,1001,,a", "line 3, column gpu_milli: 1001 is not 1 to 1000"),
            ("q,1,1,1,0,,a", "line 3, column gpu_milli: 0 is not 1 to 1000"),
            ("q,1,1,65,500,,a", "line 3, column num_gpu"),
            ("q,1,1,1,500", "line 3"),
        ] {
            let bad = file(folder.path(), "pods.csv", &pods(rows));
            let refused = simulate(&good, &bad, &[]);
            let error = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(64), "{rows}: {error}");
            assert!(error.contains("pods") && error.contains(says), "{rows}: {error}");
            assert!(refused.stdout.is_empty());
        }
        let pods = file(folder.path(), "pods.csv", &pods(""));
        for (nodes, says) in [
            ("cpu_milli,memory_mib,gpu,model\n1,1,many,T4\n", "line 2, column gpu"),
            (
                "cpu_milli,memory_mib,gpu,model\n1,1,65,T4\n",
                "line 2, column gpu: a node has at most",
            ),
            ("cpu_milli,memory_mib,gpu\n1,1,1\n", "`model`"),
            ("cpu_milli,memory_mib,gpu,model\n", "no rows"),
        ] {
            let bad = file(folder.path(), "bad.csv", nodes);
            let refused = simulate(&bad, &pods, &[]);
            let error = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(64), "{nodes}: {error}");
            assert!(error.contains("nodes") && error.contains(says), "{nodes}: {error}");
        }
        let missing = simulate(&folder.path().join("none.csv"), &pods, &[]);
        assert_eq!(missing.status.code(), Some(66));
        assert!(text(&missing.stderr).contains("none.csv"), "{}", text(&missing.stderr));
    }
}
