//! The real command and an API server's questions, over TLS to the real extender.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::process::{Command, Output};
    use std::sync::Arc;

    use gpuzone_testkit::Artifacts;
    use gpuzone_testkit::kubernetes::ClusterApi;
    use rustls::{ClientConfig, ClientConnection};
    use serde_json::{Value, json};

    use super::support::certificates::*;
    use super::support::extender::*;
    use super::support::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap()
    }

    fn gpu_zone(built: &Artifacts, words: &[&str], more: &[&str]) -> Output {
        let mut command = Command::new(built.file("gpu-zone").unwrap());
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("GPUZONE_")) {
            command.env_remove(key);
        }
        command.args(words).args(more).output().unwrap()
    }

    fn said(output: &Output) -> String {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    }

    async fn known(api: &ClusterApi, extender: &Extender, pod: &Value) {
        api.put("pods", pod.clone());
        extender.knows(pod["metadata"]["name"].as_str().unwrap()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pod_is_explained_and_quotas_are_shown() {
        let (api, folder) = (cluster(1, 2).await, folder());
        let quota = json!({ "metadata": { "name": "research" },
            "spec": { "namespaceSelector": { "matchLabels": { "team": "team" } },
                "limits": { "gpus": 1, "memory": "64Gi" } } });
        api.put("gpuquotas", quota);
        let extender = Extender::start(&api, folder.path(), "a", &[]);
        extender.leads().await;
        let whole = |name: &str| pod("team", name, &[("gpu", 1)]);
        known(&api, &extender, &whole("first")).await;
        assert_eq!(extender.bind(&whole("first"), "n1").await, "");
        known(&api, &extender, &whole("second")).await;
        known(&api, &extender, &grouped(whole("member"), "train", 3)).await;
        let part = pod("team", "large", &[("gpu", 1), ("memory-mib", 1 << 20)]);
        known(&api, &extender, &part).await;
        known(&api, &extender, &pod("team", "wrong", &[("gpu", 99)])).await;

        let built = Artifacts::build().unwrap();
        let url = format!("http://127.0.0.1:{}", extender.port);
        let ask = |words: &[&str]| gpu_zone(built, words, &["--extender", &url]);
        let explain = |name: &str| {
            let output = ask(&["explain", &format!("team/{name}")]);
            assert!(output.status.success(), "{}", said(&output));
            said(&output)
        };
        let first = explain("first");
        assert!(first.contains("on n1") || first.contains("to n1"), "{first}");
        assert!(first.contains("16Gi") && !first.contains("would have to change"), "{first}");
        for (name, parts) in [
            ("second", ["the quota is against it", "GpuQuota 'research' have to end"]),
            ("member", ["would have to change", "group 'train' have to be there: 1 of 3 are"]),
            ("large", ["the best of 2 has 16Gi, even when empty", "has to ask for less memory"]),
            ("wrong", ["not a number of GPUs", "delete it and create it so"]),
        ] {
            let text = explain(name);
            assert!(parts.iter().all(|part| text.contains(part)), "{name}: {text}");
        }
        let json = ask(&["--format", "json", "explain", "team/second"]);
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["pod"], "team/second");
        assert_eq!(json["changes"].as_array().unwrap().len(), 1);

        let missing = ask(&["explain", "nobody"]);
        assert_eq!(missing.status.code(), Some(66), "{}", said(&missing));
        assert!(said(&missing).contains("no such pod"), "{}", said(&missing));

        let table = said(&ask(&["quota"]));
        assert!(table.contains("16Gi / 64Gi") && table.contains("1 / 1"), "{table}");
        let json = ask(&["quota", "research", "--format", "json"]);
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        let research = &json["quotas"]["research"];
        assert_eq!(
            (&research["used"]["gpus"], &research["limits"]["gpus"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(research["tenants"]["team"]["memory"], "16Gi");
        assert_eq!(ask(&["quota", "nobody"]).status.code(), Some(66));
        let away = gpu_zone(built, &["quota"], &["--extender", "http://127.0.0.1:1"]);
        assert_eq!(away.status.code(), Some(69), "{}", said(&away));
        assert_eq!(gpu_zone(built, &["quota"], &[]).status.code(), Some(64));
    }

    /// A question as the API server asks it: over TLS, without a certificate of its own.
    fn post(port: u16, ca: &Issuer, path: &str, body: &[u8]) -> (u16, String) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots(ca)).with_no_client_auth();
        let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap());
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut stream = rustls::StreamOwned::new(session.unwrap(), socket);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // A body that is too large is refused before all of it was taken.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.unwrap_or(0), answer)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn over_tls_each_is_answered_at_its_own_door() {
        let (api, folder) = (cluster(1, 1).await, folder());
        let (ours, others) = (issuer(), issuer());
        let [ca, certificate, key] = certificates(folder.path(), &ours);
        let strange = tempfile::tempdir_in(folder.path()).unwrap();
        let [other_ca, other_certificate, other_key] = certificates(strange.path(), &others);
        let hook = free_port();
        let listen = format!("127.0.0.1:{hook}");
        #[rustfmt::skip]
        let more = ["--tls-certificate", &certificate, "--tls-key", &key, "--client-ca", &ca,
            "--webhook-listen", &listen, "--set-scheduler-name", "gpu-zone"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;

        let built = Artifacts::build().unwrap();
        let url = format!("https://localhost:{}", extender.port);
        let quota = |more: &[&str]| gpu_zone(built, &["quota", "--extender", &url], more);
        let fine = quota(&["--ca", &ca, "--cert", &certificate, "--key", &key]);
        assert!(fine.status.success() && said(&fine).contains("no GpuQuota"), "{}", said(&fine));
        let (ca, none): (&str, &[&str]) = (&ca, &[]);
        for (more, code) in [
            (none, 64),
            (&["--ca", ca], 69),
            (&["--ca", ca, "--cert", &other_certificate, "--key", &other_key], 69),
            (&["--ca", &other_ca, "--cert", &certificate, "--key", &key], 69),
            (&["--ca", &key], 78),
            (&["--ca", "/nowhere"], 78),
            (&["--ca", ca, "--cert", &certificate], 64),
        ] {
            let output = quota(more);
            assert_eq!(output.status.code(), Some(code), "{more:?}: {}", said(&output));
        }

        let review = |operation: &str, pod: &Value| {
            let kind = json!({ "group": "", "version": "v1", "kind": "Pod" });
            let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {
                "uid": "705ab4f5", "kind": kind, "resource": resource, "namespace": "team",
                "operation": operation, "userInfo": {}, "object": pod, "dryRun": false } })
        };
        let ask = |path: &str, pod: &Value| {
            let body = review("CREATE", pod).to_string();
            let (code, answer) = post(hook, &ours, path, body.as_bytes());
            assert_eq!(code, 200, "{answer}");
            answer
        };
        let good = pod("team", "a", &[("gpu", 1)]);
        assert!(ask("/validate", &good).contains(r#""allowed":true"#));
        let refused = ask("/validate", &pod("team", "a", &[("gpu", 99)]));
        assert!(refused.contains(r#""allowed":false"#) && refused.contains("container app"));
        assert!(ask("/mutate", &good).contains("JSONPatch"));

        let large = vec![b' '; 9 << 20];
        let nonsense: [(&str, &[u8], u16); 5] = [
            ("/validate", b"nonsense", 400),
            ("/mutate", b"{}", 400),
            ("/validate", &large, 413),
            // Nobody binds here.
            ("/bind", b"{}", 404),
            ("/filter", b"{}", 404),
        ];
        for (path, body, code) in nonsense {
            assert_eq!(post(hook, &ours, path, body).0, code, "{path} {}", body.len());
        }
        // And nobody without the scheduler's certificate is answered at the other door.
        assert_eq!(post(extender.port, &ours, "/filter", b"{}").0, 0);
    }
}
