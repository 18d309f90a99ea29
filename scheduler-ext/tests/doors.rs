//! The doors of the real program while they are in use: certificates that are exchanged, and its end
//! with a bind on its way.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use gpuzone_testkit::kubernetes::{BindFault, ClusterApi};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, ClientConnection, StreamOwned};

    use super::support::certificates::*;
    use super::support::extender::*;
    use super::support::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap()
    }

    /// The scheduler's connection.
    struct Scheduler(BufReader<StreamOwned<ClientConnection, TcpStream>>);

    impl Scheduler {
        /// With `tls.crt` and `tls.key` of the folder.
        fn dial(port: u16, trusts: &Issuer, shows: &Path) -> std::io::Result<Self> {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider);
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let chain = CertificateDer::pem_file_iter(shows.join("tls.crt")).unwrap();
            let key = PrivateKeyDer::from_pem_file(shows.join("tls.key")).unwrap();
            let config = builder
                .with_root_certificates(roots(trusts))
                .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                .unwrap();
            let name = "localhost".try_into().unwrap();
            let session = ClientConnection::new(Arc::new(config), name).unwrap();
            let socket = TcpStream::connect(("127.0.0.1", port))?;
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
            let mut own = Self(BufReader::new(StreamOwned::new(session, socket)));
            own.ask()?;
            Ok(own)
        }

        /// A question on the connection that is open.
        fn ask(&mut self) -> std::io::Result<String> {
            let stream = self.0.get_mut();
            stream.write_all(b"GET /quotas HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let (mut head, mut line) = (String::new(), String::new());
            while line != "\r\n" {
                line.clear();
                if self.0.read_line(&mut line)? == 0 {
                    return Err(std::io::Error::other("the connection ended"));
                }
                head.push_str(&line.to_ascii_lowercase());
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            self.0.read_exact(&mut body)?;
            Ok(head.lines().next().unwrap().to_owned())
        }

        /// What the server showed.
        fn saw(&self) -> CertificateDer<'static> {
            self.0.get_ref().conn.peer_certificates().unwrap()[0].clone().into_owned()
        }
    }

    fn shown_by(folder: &Path) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(folder.join("tls.crt")).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn certificates_are_exchanged_while_connections_are_open() {
        let (api, folder, client) = (cluster(1, 1).await, folder(), folder());
        let ours = issuer();
        let [ca, certificate, key] = certificates(folder.path(), &ours);
        certificates(client.path(), &ours);
        #[rustfmt::skip]
        let more = ["--tls-certificate", &certificate, "--tls-key", &key, "--client-ca", &ca];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let dial = || Scheduler::dial(extender.port, &ours, client.path());
        let sees = async |expected: &CertificateDer<'static>| {
            let saw = async || dial().is_ok_and(|scheduler| scheduler.saw() == *expected);
            until("its certificate", || extender.log(), saw).await;
        };
        let first = shown_by(folder.path());
        let mut open = dial().unwrap();
        assert_eq!(open.saw(), first);

        certificates(folder.path(), &ours);
        let second = shown_by(folder.path());
        sees(&second).await;
        assert!(open.ask().unwrap().contains("200"), "who was connected goes on");

        // Half of a file, as whoever writes it in place leaves it for a moment.
        let whole = std::fs::read(&certificate).unwrap();
        std::fs::write(&certificate, &whole[..whole.len() / 2]).unwrap();
        let told = async || extender.log().contains("those before them stay");
        until("it says so", || extender.log(), told).await;
        let log = extender.log();
        let line = log.lines().find(|line| line.contains("those before them stay")).unwrap();
        assert!(line.contains("WARN") && line.contains(&certificate), "{line}");
        assert_eq!(dial().unwrap().saw(), second);
        assert!(open.ask().unwrap().contains("200"));

        // Another's key beside it is none, either.
        std::fs::write(&certificate, &whole).unwrap();
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        let told = async || extender.log().contains("cannot be used: ");
        until("it says so", || extender.log(), told).await;
        assert_eq!(dial().unwrap().saw(), second);

        certificates(folder.path(), &ours);
        sees(&shown_by(folder.path())).await;
        assert!(open.ask().unwrap().contains("200"));
        assert_eq!(open.saw(), first);

        // Who signs clients is read anew, too: others are let in then, and those before are not.
        let others = issuer();
        std::fs::write(&ca, others.pem()).unwrap();
        until("it is locked out", || extender.log(), async || dial().is_err()).await;
        assert!(open.ask().unwrap().contains("200"), "who is connected goes on");
    }

    fn holder(api: &ClusterApi) -> String {
        let lease = api.get("leases", "gpu-zone/gpu-zone-scheduler-ext").unwrap();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    /// A bind on its way; the process was told to end meanwhile.
    async fn end_with_a_bind_on_its_way(api: &ClusterApi, fault: BindFault) -> (String, Extender) {
        let folder = folder();
        let extender = Extender::start(api, folder.path(), "a", &["--without-quota", "admit"]);
        extender.leads().await;
        let a = pod("team", "a", &[("gpu", 1)]);
        api.put("pods", a.clone());
        extender.knows("a").await;
        api.fault_bindings([fault]);
        let door = extender.door();
        let bind = tokio::spawn(async move { door.bind(&a, "n1").await });
        let asked = async || api.writes("bind", "pods") > 0;
        until("the Binding is on its way", || extender.log(), asked).await;
        extender.tell_to_end();
        until("it ends", || extender.log(), async || extender.has_ended()).await;
        (bind.await.unwrap(), extender)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_told_to_end_finishes_its_binds_and_answers_them() {
        let api = cluster(1, 1).await;
        let slow = BindFault::Slow(Duration::from_millis(1500));
        let (said, extender) = end_with_a_bind_on_its_way(&api, slow).await;
        assert_eq!(said, "", "{}", extender.log());
        assert_eq!(api.bindings(), [("team/a".to_owned(), "n1".to_owned())]);
        assert_eq!(holder(&api), "", "the next one leads at once");
    }

    /// An API server that never answers does not keep it: the scheduler hears that nobody knows. The Lease
    /// is not given back: the next leader does not know of the place that may be taken.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_ends_when_a_binding_has_no_answer_either() {
        let api = cluster(1, 1).await;
        let never = BindFault::Slow(Duration::from_secs(3600));
        let (said, extender) = end_with_a_bind_on_its_way(&api, never).await;
        assert!(said.contains("place is kept"), "{said}\n{}", extender.log());
        assert_eq!(api.bindings(), []);
        assert_ne!(holder(&api), "");
    }
}
