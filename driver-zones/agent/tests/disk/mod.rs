//! A disk that is full: what cannot be written down is not granted, and all goes on when there is
//! room again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpuzone_ledger::{AuditKind, Expected, verify};

use super::support::Node;

/// A small file system of its own, until this is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where this process may not mount.
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4M,mode=700", "tmpfs"]).arg(path);
        mount.status().is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }

    /// Leaves no byte free; the file that takes it all.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_grants_nothing_and_recovers_as_root() {
    let mut node = Node::prepare();
    let Some(small) = Small::mount(&node.path("state")) else {
        println!("skipped: only root can mount a small file system");
        return;
    };
    node.start_agent().await;
    let before = node.lease(1).await.unwrap();
    let filler = small.fill();
    // What is left in the files' last blocks may take one thing and not the next.
    for _ in 0..20 {
        let refused = node.lease(1).await.unwrap_err();
        let why = refused.message;
        assert!(why.contains("free space") || why.contains("disk is full"), "{why}");
    }
    let active = node.leases().await.into_iter().filter(|lease| lease.state == "active");
    assert_eq!(active.count(), 1, "the one from before goes on");
    node.run_in(&before, "saxpy");
    std::fs::remove_file(filler).unwrap();
    node.eventually("the end of what was begun", async |node| node.leases().await.len() == 1).await;
    node.lease(1).await.unwrap();

    let (mut grants, mut served) = (0, 0);
    let found = verify(&node.directories().audit_log(), &Expected::default(), |entry| {
        grants += u32::from(entry.kind == AuditKind::Grant);
        served += u32::from(entry.kind == AuditKind::ZoneStart);
    });
    assert_eq!(found.unwrap().damage, None);
    // The two that were served, and the broker; one may be granted in the log and served nobody.
    assert!(grants >= 2 && served >= 3, "{grants} granted, {served} started");
}
