//! The scheduler extender's endpoints that only say something.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;

use crate::arguments::Extender;
use crate::error::{CliError, Kind};

/// An answer that is larger is none of the extender's.
const LARGEST: usize = 64 << 20;
/// It answers from memory.
const PATIENCE: Duration = Duration::from_secs(30);
/// A refusal's text that is longer is no sentence.
const LONGEST: usize = 500;

/// What the extender says at `path`, which begins with '/'.
pub(crate) async fn ask<T: DeserializeOwned>(
    extender: &Extender,
    path: &str,
) -> Result<T, CliError> {
    let uri = address(&extender.extender, path)?;
    let client = Client::builder(TokioExecutor::new()).build(connector(extender)?);
    let asked = tokio::time::timeout(PATIENCE, answer(client, uri)).await;
    let (status, bytes) = asked.map_err(|_| {
        let message = format!("{} gave no answer within {PATIENCE:?}", extender.extender);
        CliError::new(Kind::Unavailable, message)
    })??;
    if status != StatusCode::OK {
        return Err(refused(status, &bytes));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let message =
            format!("what {} says is not what an extender says: {error}", extender.extender);
        CliError::new(Kind::Unavailable, message).hint("is it another version, or another service?")
    })
}

type Asking = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

async fn answer(client: Asking, uri: Uri) -> Result<(StatusCode, Bytes), CliError> {
    let asked: Result<Response<Incoming>, _> = client.get(uri.clone()).await;
    let response = asked.map_err(|error| unreachable(&uri, &error))?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LARGEST).collect().await;
    let body = body.map_err(|error| unreachable(&uri, error.as_ref()))?;
    Ok((head.status, body.to_bytes()))
}

fn unreachable(uri: &Uri, error: &(dyn Error + 'static)) -> CliError {
    let cause = CliError::caused(Kind::Unavailable, error).message;
    let hint = match cause.contains("ertificate") {
        true => {
            "--ca has to be who signed the extender's certificate, the URL's host one of its names, and --cert and --key a pair that its --client-ca signed"
        }
        false => "only the replica that leads has the Service; `kubectl get lease` names it",
    };
    CliError::new(Kind::Unavailable, format!("cannot ask {uri}: {cause}")).hint(hint)
}

fn refused(status: StatusCode, bytes: &[u8]) -> CliError {
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Kind::Unavailable,
        _ => Kind::Internal,
    };
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]);
    let text = gpuzone_ledger::printable(text.trim());
    let said = if text.is_empty() { status.to_string() } else { text };
    CliError::new(kind, format!("the extender says: {said}"))
}

fn address(base: &Uri, path: &str) -> Result<Uri, CliError> {
    let (Some(scheme), Some(authority)) = (base.scheme(), base.authority()) else {
        let message = format!("'{base}' is no address of an extender; write https://HOST:PORT");
        return Err(CliError::new(Kind::Usage, message));
    };
    let whole = format!("{}{path}", base.path().trim_end_matches('/'));
    let uri = Uri::builder().scheme(scheme.clone()).authority(authority.clone());
    uri.path_and_query(whole).build().map_err(|error| CliError::caused(Kind::Usage, &error))
}

/// Over TLS, only the extender whose certificate the CA signed is asked: its CA is mostly one of
/// its own, so none of the system's stands in for it.
fn connector(extender: &Extender) -> Result<HttpsConnector<HttpConnector>, CliError> {
    if extender.extender.scheme_str() == Some("https") && extender.ca.is_none() {
        return Err(CliError::new(Kind::Usage, "an https:// extender needs --ca, the file of who signed its certificate")
            .hint("with the chart: `kubectl get secret gpu-zone-scheduler-ext-client -o yaml` has ca.crt, tls.crt and tls.key"));
    }
    let mut roots = RootCertStore::empty();
    for root in extender.ca.iter().map(|path| certificates(path)) {
        for certificate in root? {
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unusable(&error))?.with_root_certificates(roots);
    let tls = match (&extender.cert, &extender.key) {
        (Some(certificate), Some(key)) => {
            let own = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            let chain = certificates(certificate)?;
            builder.with_client_auth_cert(chain, own).map_err(|error| unusable(&error))?
        }
        (None, _) | (_, None) => builder.with_no_client_auth(),
    };
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.map_err(|error| unreadable(path, &error))?;
    if all.is_empty() {
        let message = format!("{} has no certificate in it", path.display());
        return Err(CliError::new(Kind::Configuration, message));
    }
    Ok(all)
}

fn unreadable(path: &Path, error: &dyn Error) -> CliError {
    let cause = CliError::caused(Kind::Configuration, error).message;
    CliError::new(Kind::Configuration, format!("cannot read {}: {cause}", path.display()))
}

fn unusable(error: &dyn Error) -> CliError {
    let cause = CliError::caused(Kind::Configuration, error).message;
    CliError::new(Kind::Configuration, format!("the certificates cannot be used: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_may_have_a_folder() {
        let address = |base: &str, path: &str| {
            address(&base.parse().unwrap(), path).map(|uri| uri.to_string()).map_err(|e| e.kind)
        };
        assert_eq!(address("http://x:1", "/quotas").as_deref(), Ok("http://x:1/quotas"));
        assert_eq!(address("https://x/ext/", "/quotas").as_deref(), Ok("https://x/ext/quotas"));
        assert_eq!(address("x:1", "/quotas"), Err(Kind::Usage));
        assert_eq!(address("/folder", "/quotas"), Err(Kind::Usage));
    }

    #[test]
    fn what_a_stranger_says_moves_no_cursor() {
        let error = refused(StatusCode::NOT_FOUND, "no \u{1b}[2J such pod".repeat(100).as_bytes());
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.message.len() < 1000 && !error.message.contains('\u{1b}'));
        assert_eq!(refused(StatusCode::BAD_GATEWAY, b"").kind, Kind::Internal);
    }
}
