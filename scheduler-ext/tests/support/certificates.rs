//! Certificates that nobody else trusts.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::path::Path;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::RootCertStore;

pub(crate) type Issuer = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn issuer() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// `ca.crt`, `tls.crt` and `tls.key` for `localhost`, as the chart's Secrets have them.
pub(crate) fn certificates(folder: &Path, by: &Issuer) -> [String; 3] {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, by).unwrap().pem();
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).display().to_string()
    };
    [
        write("ca.crt", by.pem()),
        write("tls.crt", certificate),
        write("tls.key", key.serialize_pem()),
    ]
}

/// Who trusts nobody else.
pub(crate) fn roots(of: &Issuer) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(of.der().clone()).unwrap();
    roots
}
