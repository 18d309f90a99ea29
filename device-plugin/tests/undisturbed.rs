//! A claim that waits for a slow disk, and a second plugin of the same resource: neither keeps the real
//! plugin from answering the kubelet.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use gpuzone_api::kubelet::v1beta1::registration_server::{Registration, RegistrationServer};
    use gpuzone_api::kubelet::v1beta1::{Empty, RegisterRequest};
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    use super::support::Cluster;

    /// A kubelet that takes every plugin and never asks one for anything.
    struct Deaf;

    #[tonic::async_trait]
    impl Registration for Deaf {
        async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
            Ok(Response::new(Empty {}))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_kubelet_that_never_asks_for_the_devices_is_told_of() {
        let mut cluster = Cluster::without_plugin().await;
        let socket = cluster.kubelet().folder().join("kubelet.sock");
        cluster.kubelet = None;
        std::fs::remove_file(&socket).unwrap();
        let deaf = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(Deaf))
            .serve_with_incoming(UnixListenerStream::new(UnixListener::bind(&socket).unwrap()));
        let deaf = tokio::spawn(deaf);
        cluster.start_plugin();
        let told = |cluster: &Cluster| {
            let events = cluster.api.events().into_iter();
            events.filter(|event| event["reason"] == "GpuPluginNotAsked").collect::<Vec<_>>()
        };
        cluster.until("an event", async |c| !told(c).is_empty()).await;
        let event = told(&cluster).remove(0);
        assert_eq!(event["regarding"]["kind"], "Node", "{event}");
        assert!(event["note"].as_str().unwrap().contains("gpuzone.dev/gpu"), "{event}");
        assert!(cluster.log().contains("restart the kubelet"), "{}", cluster.log());

        // One that asks, after it, has the slots and is said nothing of.
        deaf.abort();
        cluster.start_kubelet(Vec::new());
        cluster.registered().await;
        tokio::time::sleep(std::time::Duration::from_secs(7)).await;
        let said = cluster.log().matches("has not asked for its devices").count();
        assert_eq!((told(&cluster).len(), said), (1, 1), "{}", cluster.log());
    }

    /// Their state folders differ, so no lock tells the one of the other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_second_plugin_of_a_resource_waits_and_takes_nothing_from_the_first() {
        let mut cluster = Cluster::start().await;
        let socket = cluster.kubelet().folder().join("gpuzone.dev_gpu.sock");
        // A number alone is given anew.
        let identity = |found: std::fs::Metadata| (found.ino(), found.ctime(), found.ctime_nsec());
        let inode = || std::fs::metadata(&socket).map(identity).ok();
        let first = inode();
        let state = cluster.node.folder().join("other-state");
        let kubeconfig = cluster.api.kubeconfig(cluster.node.folder()).unwrap();
        let second_log = cluster.node.folder().join("second.log");
        let second = |cluster: &Cluster| {
            let log = std::fs::File::create(&second_log).unwrap();
            cluster.plugin_over(&state, &kubeconfig).stderr(log).spawn().unwrap()
        };
        let says = async |_: &Cluster| {
            std::fs::read_to_string(&second_log).unwrap().contains("another process serves")
        };
        let end = |mut plugin: std::process::Child| {
            let pid = rustix::process::Pid::from_child(&plugin);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            assert!(plugin.wait().unwrap().success());
        };
        let waiting = second(&cluster);
        cluster.until("the second's word", says).await;
        assert_eq!(cluster.kubelet().allocatable(), 64);
        end(waiting);
        assert_eq!(inode(), first, "it takes nothing away");
        let pod = cluster.small_pod("a");
        cluster.admit(&pod).await;
        let container = cluster.start_container(&pod, "app").await;
        cluster.works(&container);

        // The first is killed, and the second takes its place.
        let waiting = second(&cluster);
        cluster.until("the second's word", says).await;
        cluster.kill_plugin();
        cluster.until("another socket", async |_| inode().is_some_and(|i| Some(i) != first)).await;
        cluster.registered().await;
        end(waiting);
        assert_eq!(inode(), None);

        // One that asks nobody puts its socket in the place of ours.
        cluster.start_plugin();
        cluster.registered().await;
        let beside = cluster.node.folder().join("another.sock");
        let _another = std::os::unix::net::UnixListener::bind(&beside).unwrap();
        std::fs::rename(&beside, &socket).unwrap();
        let (another, log) = (inode(), cluster.log_path());
        let says = async |_: &Cluster| {
            std::fs::read_to_string(&log).unwrap().contains("another process serves")
        };
        cluster.until("the first's word", says).await;
        end(cluster.plugin.take().unwrap());
        assert_eq!(inode(), another, "it removes what is its own");
    }

    /// The claim writes into a pipe that is full: a disk that does not answer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn allocate_answers_while_a_claim_waits_for_the_disk() {
        let cluster = Cluster::start().await;
        let (slow, next) = (cluster.small_pod("slow"), cluster.small_pod("next"));
        cluster.admit(&slow).await;
        let slot = cluster.node.state_dir().join("slots/slot-0");
        let folder = std::fs::read_dir(&slot).unwrap().next().unwrap().unwrap().path();
        let owner = folder.with_extension("new");
        let mut disk = full_pipe(&owner);
        let claiming = async {
            let held = format!("/proc/{}/fd", cluster.plugin.as_ref().unwrap().id());
            let holds = async |_: &Cluster| {
                let mut fds = std::fs::read_dir(&held).unwrap().flatten();
                fds.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == owner))
            };
            cluster.until("the claim", holds).await;
            // Also of the very slot, which the kubelet gives to another.
            let same = cluster.small_pod("same");
            let admitted = async {
                cluster.admit(&next).await;
                cluster.delete(&slow);
                cluster.admit(&same).await;
            };
            let limit = std::time::Duration::from_secs(60);
            tokio::time::timeout(limit, admitted).await.expect("Allocate waits for the claim");
            assert_eq!(cluster.kubelet().devices(&same, "app"), ["slot-0".to_owned()].into());
            let mut drained = [0; 4096];
            while std::io::Read::read(&mut disk, &mut drained).is_ok() {}
            same
        };
        let (starting, same) =
            tokio::join!(cluster.kubelet().start_container(&slow, "app"), claiming);
        let said = starting.unwrap_err().to_string();
        assert!(said.contains("cannot write"), "a pipe is no disk: {said}");
        std::fs::remove_file(&owner).unwrap();
        let container = cluster.start_container(&same, "app").await;
        cluster.works(&container);
    }

    /// A pipe that takes nothing until something is read from it.
    fn full_pipe(path: &std::path::Path) -> std::fs::File {
        use std::os::unix::fs::OpenOptionsExt;
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
        let mut options = std::fs::File::options();
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let mut pipe = options.read(true).write(true).custom_flags(nonblocking).open(path).unwrap();
        while std::io::Write::write(&mut pipe, &[0; 4096]).is_ok() {}
        pipe
    }
}
