//! What the agent tells a scraper, and what becomes of those who are none.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gpuzone_api::agent::v1 as proto;

use super::support::{Node, request};

/// A node whose metrics are served on a socket.
async fn node() -> Node {
    let mut node = Node::prepare();
    node.configure("[usage]", "[metrics]\nlisten = \"unix:metrics.sock\"\n[usage]");
    node.start_agent().await;
    node
}

/// What comes back for these bytes; nothing when the agent hung up first.
fn send(node: &Node, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(node.path("metrics.sock")).unwrap();
    exchange(&mut stream, bytes)
}

fn exchange(stream: &mut (impl Read + Write), bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    // It may hang up before all of it is sent or read, which is an answer.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn scrape(node: &Node) -> String {
    let answer = send(node, b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    answer
}

fn value(page: &str, sample: &str) -> f64 {
    let line = page
        .lines()
        .find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no {sample} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_page_follows_leases_from_their_beginning_to_their_end() {
    let node = node().await;
    assert_eq!(value(&scrape(&node), "gpuzone_leases{state=\"active\"}"), 0.0);
    let lease = node.lease(4).await.unwrap();
    node.run_in(&lease, "vector-add");
    let refused = node.client().await.create_lease(request("small", 2)).await;
    refused.unwrap_err();

    let page = scrape(&node);
    assert!(page.contains("text/plain; version=0.0.4"), "{page}");
    assert!(page.contains("backing=\"simulated\""), "{page}");
    let launches = "gpuzone_tenant_launches_total{tenant=\"acme\"}";
    let used = value(&page, launches);
    assert!(used >= 1.0, "{page}");
    assert_eq!(value(&page, "gpuzone_leases{state=\"active\"}"), 1.0);
    let reserved = "gpuzone_tenant_memory_reserved_bytes{tenant=\"acme\"}";
    assert_eq!(value(&page, reserved), f64::from(1 << 30) * 4.0);
    assert_eq!(value(&page, "gpuzone_lease_refusals_total{kind=\"quota\"}"), 1.0);
    assert_eq!(value(&page, "gpuzone_answers{of=\"broker\"}"), 1.0);
    assert_eq!(value(&page, "gpuzone_scrubs_total{result=\"clear\"}"), 0.0);

    let lease_id = lease.lease.unwrap().id;
    let mut client = node.client().await;
    client.end_lease(proto::EndLeaseRequest { lease_id }).await.unwrap();
    let page = scrape(&node);
    // What was used stays counted, and once.
    assert_eq!(value(&page, launches), used);
    assert_eq!(value(&page, reserved), 0.0);
    assert_eq!(value(&page, "gpuzone_scrubs_total{result=\"clear\"}"), 1.0);
    assert_eq!(value(&page, "gpuzone_scrubbed_bytes_total"), f64::from(1 << 30) * 16.0);
}

#[tokio::test]
async fn who_asks_for_open_metrics_gets_it() {
    let node = node().await;
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let asked = format!("GET /metrics HTTP/1.1\r\nHost: n\r\nAccept: {accept}\r\n\r\n");
    let answer = send(&node, asked.as_bytes());
    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn garbage_gets_nothing_and_harms_nobody() {
    let node = node().await;
    let long = vec![b'a'; 1 << 20];
    let headers = "X: y\r\n".repeat(1000);
    let nonsense: [Vec<u8>; 7] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0; 100_000],
        [b"GET /", &long[..], b" HTTP/1.1\r\n\r\n"].concat(),
        format!("GET /metrics HTTP/1.1\r\n{headers}\r\n").into_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
    ];
    for bytes in nonsense {
        let answer = send(&node, &bytes);
        let head = answer.lines().next().unwrap_or_default();
        assert!(!head.contains(" 200 "), "{answer}");
    }
    for (asked, status) in [
        ("GET /", 404),
        ("GET /metrics/../agent.toml", 404),
        ("GET /debug/pprof", 404),
        ("POST /metrics", 405),
        ("DELETE /metrics", 405),
    ] {
        let answer = send(&node, format!("{asked} HTTP/1.1\r\nHost: n\r\n\r\n").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{asked}: {answer}");
    }
    scrape(&node);
    node.lease(1).await.unwrap();
}

/// Far more connections than are served at once, each of which sends a little and waits.
#[tokio::test]
async fn those_who_never_finish_are_cut_off() {
    let node = node().await;
    let slow: Vec<UnixStream> = (0..100)
        .filter_map(|n| {
            let mut stream = UnixStream::connect(node.path("metrics.sock")).ok()?;
            stream.write_all(&b"GET /metrics HTTP/1.1\r\nHost"[..n % 20]).ok()?;
            Some(stream)
        })
        .collect();
    assert!(slow.len() > 50, "{}", slow.len());
    // Leases do not wait for them.
    node.lease(1).await.unwrap();
    // A scraper comes after them, and does not have to wait for them to give up.
    scrape(&node);
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut rest = Vec::new();
        // A time-out would be an error: nobody cut it off.
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert!(!rest.windows(5).any(|part| part == b"# EOF"));
    }
}

#[tokio::test]
async fn an_address_serves_too_and_one_that_is_taken_stops_the_agent() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut node = Node::prepare();
    node.configure("[usage]", &format!("[metrics]\nlisten = \"{address}\"\n[usage]"));
    let said = node.refused();
    assert!(said.contains(&format!("cannot serve metrics at {address}")), "{said}");
    drop(taken);
    node.start_agent().await;
    let mut stream = TcpStream::connect(address).unwrap();
    let page = exchange(&mut stream, b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(page.contains("gpuzone_agent_info{"), "{page}");
    // Half a connection is none.
    let stream = TcpStream::connect(address).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(exchange(&mut &stream, b""), "");
}

#[tokio::test]
async fn nothing_listens_unless_it_is_told_to() {
    let node = Node::start().await;
    assert!(!node.path("metrics.sock").exists());
    let agent = node.agent.as_ref().unwrap().id();
    let mut listening = Vec::new();
    let sockets = sockets_of(agent);
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/{agent}/net/{table}"));
        for line in text.unwrap_or_default().lines().skip(1) {
            let inode = line.split_whitespace().nth(9).unwrap_or_default();
            if sockets.iter().any(|socket| socket == inode) {
                listening.push(line.to_owned());
            }
        }
    }
    assert_eq!(listening, Vec::<String>::new());
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let inode = |link: std::path::PathBuf| {
        let text = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        Some(text)
    };
    links.filter_map(inode).collect()
}
