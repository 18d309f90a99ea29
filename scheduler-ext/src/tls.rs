//! Certificates: read at start, and again when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// The server's, with what it is signed by.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// Who signs clients' certificates; without it, clients need none.
    pub(crate) clients: Option<PathBuf>,
}

/// Files that are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of them cannot be read.
    #[error("cannot read {}: {reason}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// They do not fit together.
    #[error("the certificate and its key cannot be used: {0}")]
    Config(#[from] rustls::Error),
    /// Nor do those of clients.
    #[error("clients' certificates cannot be checked: {0}")]
    Clients(#[from] rustls::server::VerifierBuilderError),
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.certificate), Some(&self.key), self.clients.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }

    /// All bytes of all files: what differs is another configuration.
    fn bytes(&self) -> Vec<Vec<u8>> {
        self.all().map(|path| std::fs::read(path).unwrap_or_default()).collect()
    }

    /// The server's configuration.
    ///
    /// # Errors
    /// When a file cannot be read or they do not fit together.
    pub(crate) fn load(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| TlsError::File {
            path: self.key.clone(),
            reason: error.to_string(),
        })?;
        let mut config = builder.with_single_cert(certificates(&self.certificate)?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let all = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    if all.is_empty() { Err(failed("it has no certificate".into())) } else { Ok(all) }
}

/// Takes new certificates when their files change; files that are wrong change nothing.
pub(crate) async fn reload(files: Files, config: RustlsConfig) {
    let mut known = files.bytes();
    loop {
        tokio::time::sleep(LOOK).await;
        let found = files.bytes();
        if found == known {
            continue;
        }
        match files.load() {
            Ok(new) => {
                config.reload_from_config(Arc::new(new));
                tracing::info!("new certificates are taken; connections that are open go on");
            }
            Err(error) => {
                tracing::warn!(%error, "new certificates cannot be used, so those before them stay");
            }
        }
        known = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
    use rustls::{ClientConfig, ClientConnection, ServerConnection};

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn issuer() -> Issuer {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate and its key, both in PEM.
    fn signed(by: &Issuer) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["ext".to_owned()]).unwrap();
        (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
    }

    fn files(folder: &Path, by: &Issuer) -> Files {
        let at = |name: &str| folder.join(name);
        let (certificate, key) = signed(by);
        std::fs::write(at("crt"), certificate).unwrap();
        std::fs::write(at("key"), key).unwrap();
        std::fs::write(at("ca"), by.pem()).unwrap();
        Files { certificate: at("crt"), key: at("key"), clients: Some(at("ca")) }
    }

    fn client(trusts: &Issuer, shows: Option<&Issuer>) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(trusts.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some(by) => {
                let (certificate, key) = signed(by);
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        ClientConnection::new(Arc::new(config), "ext".try_into().unwrap()).unwrap()
    }

    /// Both sides speak until neither has anything to say, or one of them refuses.
    fn shake_hands(
        server: ServerConfig,
        mut client: ClientConnection,
    ) -> Result<(), rustls::Error> {
        let mut server = ServerConnection::new(Arc::new(server))?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
        Ok(())
    }

    #[test]
    fn only_the_scheduler_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, others) = (issuer(), issuer());
        let files = files(folder.path(), &ours);
        let server = || files.load().unwrap();
        shake_hands(server(), client(&ours, Some(&ours))).unwrap();
        assert!(shake_hands(server(), client(&ours, None)).is_err());
        assert!(shake_hands(server(), client(&ours, Some(&others))).is_err());
        assert!(shake_hands(server(), client(&others, Some(&ours))).is_err());
        let open = Files { clients: None, ..files.clone() };
        shake_hands(open.load().unwrap(), client(&ours, None)).unwrap();
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), &issuer());
        let before = files.bytes();
        std::fs::write(&files.certificate, "nothing").unwrap();
        assert_ne!(files.bytes(), before, "a change is seen");
        assert!(files.load().unwrap_err().to_string().contains("crt"));
        let (certificate, _) = signed(&issuer());
        std::fs::write(&files.certificate, certificate).unwrap();
        assert!(matches!(files.load(), Err(TlsError::Config(_))), "another's key");
        std::fs::remove_file(&files.key).unwrap();
        assert!(files.load().unwrap_err().to_string().contains("key"));
    }
}
