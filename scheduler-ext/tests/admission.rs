//! What is said to pods before they are stored, over reviews as an API server sends them.

#[cfg(test)]
mod tests {
    use gpuzone_api::kubernetes::ResourceNames;
    use gpuzone_core::engine::Policy;
    use gpuzone_core::{ComputeShare, MemoryBytes};
    use gpuzone_crds::Defaults;
    use gpuzone_scheduler_ext::admission::{Rules, mutate, validate};
    use kube::core::DynamicObject;
    use kube::core::admission::AdmissionReview;
    use serde_json::{Value, json};

    fn rules() -> Rules {
        let scheduler = Some("gpu-zone".parse().unwrap());
        let names = ResourceNames::defaults().unwrap();
        Rules { names, scheduler, policy: Policy::Fragmentation }
    }

    /// The review that an API server sends for a pod that a ReplicaSet creates.
    fn review(pod: &Value) -> Value {
        let kind = json!({ "group": "", "version": "v1", "kind": "Pod" });
        let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
        json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": kind, "resource": resource,
                "requestKind": kind, "requestResource": resource,
                "namespace": "team", "operation": "CREATE",
                "userInfo": {
                    "username": "system:serviceaccount:kube-system:replicaset-controller",
                    "uid": "014fbff9-9a37-4a1b-8d1c-2d0d0d0d0d0d",
                    "groups": ["system:serviceaccounts", "system:authenticated"],
                    "extra": { "authentication.kubernetes.io/credential-id": ["JTI=1"] },
                },
                "object": pod, "oldObject": null, "dryRun": false,
                "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
            },
        })
    }

    /// A pod as it stands in a review: without UID and, of a controller, without a name.
    fn pod(limits: &Value, annotations: &Value) -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": { "generateName": "train-", "namespace": "team",
                "creationTimestamp": null, "annotations": annotations },
            "spec": {
                "containers": [{ "name": "app", "image": "x", "resources": { "limits": limits },
                    "terminationMessagePolicy": "File", "imagePullPolicy": "Always" }],
                "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "enableServiceLinks": true,
            },
            "status": {},
        })
    }

    type Review = AdmissionReview<DynamicObject>;

    fn asked(of: impl Fn(&Rules, Review) -> Review, review: &Value) -> Value {
        let answer = of(&rules(), serde_json::from_value(review.clone()).unwrap());
        let answer = serde_json::to_value(answer).unwrap();
        assert_eq!(answer["kind"], "AdmissionReview");
        answer
    }

    /// What creating a pod is answered: empty when it may be.
    fn refusal(review: &Value) -> String {
        let answer = asked(validate, review);
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        let response = &answer["response"];
        assert_eq!(response["uid"], review["request"]["uid"]);
        assert!(response["patch"].is_null(), "it changes nothing");
        match response["allowed"].as_bool().unwrap() {
            true => String::new(),
            false => {
                assert_eq!(response["status"]["code"], 422);
                response["status"]["message"].as_str().unwrap().to_owned()
            }
        }
    }

    /// The patch that a review is answered with.
    fn patch(review: &Value) -> Option<Value> {
        patch_by(review, Defaults::default())
    }

    /// The same, where the namespace's quotas say what is taken by default.
    fn patch_by(review: &Value, defaults: Defaults) -> Option<Value> {
        let of_team = move |namespace: &str| match namespace {
            "team" => defaults,
            _ => Defaults::default(),
        };
        let answer = asked(|rules, review| mutate(rules, review, of_team), review);
        let response = answer["response"].clone();
        assert_eq!(response["allowed"], true, "it refuses nothing");
        let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).ok()?;
        assert_eq!(response["patchType"], "JSONPatch");
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn what_makes_sense_passes() {
        let part = json!({ "gpuzone.dev/gpu": "1", "gpuzone.dev/memory-mib": "8192" });
        assert_eq!(refusal(&review(&pod(&part, &json!(null)))), "");
        assert_eq!(refusal(&review(&pod(&part, &json!({ "gpuzone.dev/topology": "any" })))), "");
        // Nothing of it is ours.
        let strange = json!({ "gpuzone.dev/topology": "wherever" });
        assert_eq!(refusal(&review(&pod(&json!({ "cpu": "1" }), &strange))), "");
    }

    #[test]
    fn what_could_never_be_given_is_refused_with_the_parsers_sentence() {
        let gpu = |n: &str| json!({ "gpuzone.dev/gpu": n });
        let none = json!({});
        for (limits, annotations, said) in [
            (gpu("65"), none.clone(), "container app: gpuzone.dev/gpu: "),
            (gpu("500m"), none.clone(), "'500m' is not a whole number"),
            (json!({ "gpuzone.dev/share": "50" }), none.clone(), "add gpuzone.dev/gpu: 1"),
            (
                json!({ "gpuzone.dev/gpu": "1", "gpuzone.dev/memory-mib": "1",
                    "gpuzone.dev/memory-percent": "1" }),
                none,
                "keep one of them",
            ),
            (gpu("1"), json!({ "gpuzone.dev/topology": "near" }), "none of any, same-numa and"),
            (gpu("1"), json!({ "gpuzone.dev/policy": "best" }), "none of pack, spread and"),
            (gpu("1"), json!({ "gpuzone.dev/model": "" }), "product names"),
        ] {
            let refused = refusal(&review(&pod(&limits, &annotations)));
            assert!(refused.contains(said), "{refused} lacks {said}");
        }
        let mut grouped = pod(&gpu("1"), &json!(null));
        grouped["metadata"]["labels"] = json!({ "scheduling.x-k8s.io/pod-group": "train" });
        grouped["metadata"]["annotations"] = json!({ "gpuzone.dev/pod-group-size": "0" });
        assert!(refusal(&review(&grouped)).contains("gpuzone.dev/pod-group-size: '0' is not"));
        // Its PodGroup may say how many they are, and nobody is asked for that here.
        grouped["metadata"]["annotations"] = json!(null);
        assert_eq!(refusal(&review(&grouped)), "");
    }

    #[test]
    fn nobody_but_the_scheduler_writes_a_placement() {
        let forged = json!({ "gpuzone.dev/placement": "anything at all" });
        for limits in [json!({ "gpuzone.dev/gpu": "1" }), json!({ "cpu": "1" })] {
            let refused = refusal(&review(&pod(&limits, &forged)));
            assert!(refused.contains("gpuzone.dev/placement") && refused.contains("leave it out"));
        }
        // A pod that has one keeps it, whatever else of it changes, and what was stored before
        // this webhook was there is not judged again.
        let update = |before: &Value, after: &Value| {
            let mut review = review(&pod(&json!({ "gpuzone.dev/gpu": "99" }), after));
            review["request"]["operation"] = json!("UPDATE");
            review["request"]["oldObject"] = pod(&json!({ "gpuzone.dev/gpu": "99" }), before);
            refusal(&review)
        };
        let (none, other) = (json!({}), json!({ "gpuzone.dev/placement": "other" }));
        assert_eq!(update(&forged, &forged), "");
        assert_eq!(update(&none, &json!({ "a": "b" })), "");
        for (before, after) in [(&none, &forged), (&forged, &none), (&forged, &other)] {
            assert!(update(before, after).contains("stays as it is"), "{before} {after}");
        }
    }

    #[test]
    fn the_scheduler_is_named_where_nobody_named_one() {
        let named = json!({ "op": "add", "path": "/spec/schedulerName", "value": "gpu-zone" });
        let names = |review: &Value| {
            let patch = patch(review).unwrap_or_default();
            patch.as_array().is_some_and(|changes| changes.contains(&named))
        };
        let gpus = pod(&json!({ "gpuzone.dev/gpu": "1" }), &json!(null));
        assert!(names(&review(&gpus)));
        // One that cannot be read must not start without GPUs either, and nothing else is said of it.
        let wrong = pod(&json!({ "gpuzone.dev/gpu": "half" }), &json!(null));
        assert_eq!(patch(&review(&wrong)), Some(json!([named])));
        let mut init = pod(&json!({}), &json!(null));
        init["spec"]["initContainers"] =
            json!([{ "name": "i", "resources": { "limits": { "gpuzone.dev/gpu": "1" } } }]);
        assert!(names(&review(&init)));

        let mut other = gpus.clone();
        other["spec"]["schedulerName"] = json!("my-scheduler");
        assert!(!names(&review(&other)));
        let mut update = review(&gpus);
        update["request"]["operation"] = json!("UPDATE");
        let plain = pod(&json!({ "cpu": "1" }), &json!(null));
        for unchanged in [update, review(&plain)] {
            assert_eq!(patch(&unchanged), None);
        }
        let rules = Rules { scheduler: None, ..rules() };
        let review = serde_json::from_value(review(&gpus)).unwrap();
        let answer = serde_json::to_value(mutate(&rules, review, |_| Defaults::default())).unwrap();
        let bytes: Vec<u8> = serde_json::from_value(answer["response"]["patch"].clone()).unwrap();
        let patch: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(!patch.as_array().unwrap().contains(&named), "nobody told it a name");
    }

    #[test]
    fn what_is_left_out_is_written_down() {
        let written = |limits: Value, annotations: Value| {
            let patch = patch(&review(&pod(&limits, &annotations))).unwrap_or_default();
            let path = "/metadata/annotations/gpuzone.dev~1defaults";
            let found = patch.as_array().into_iter().flatten().find(|op| op["path"] == path);
            found.map(|op| op["value"].as_str().unwrap().to_owned()).unwrap_or_default()
        };
        let (gpu, none) = (json!({ "gpuzone.dev/gpu": "2" }), json!(null));
        assert_eq!(
            written(gpu.clone(), none.clone()),
            "container app: all of the memory and time of each GPU, mediated; topology: any; policy: fragmentation"
        );
        let mut part = gpu.clone();
        part["gpuzone.dev/memory-mib"] = json!("8192");
        let near = json!({ "gpuzone.dev/topology": "nvlink" });
        assert_eq!(
            written(part.clone(), near.clone()),
            "container app: of the time the same part as of the memory, mediated; policy: fragmentation"
        );
        part["gpuzone.dev/share"] = json!("50");
        let mut all = near;
        all["gpuzone.dev/policy"] = json!("pack");
        assert_eq!(written(part, all.clone()), "", "nothing is left out");
        // Of what there are no parts, none is left out.
        assert_eq!(written(json!({ "gpuzone.dev/mig-1g.10gb": "1" }), all), "");
        // Annotations that are not there are made first, and those that are stay.
        let changes = patch(&review(&pod(&gpu, &none))).unwrap();
        assert_eq!(
            changes[1],
            json!({ "op": "add", "path": "/metadata/annotations", "value": {} })
        );
        let changes = patch(&review(&pod(&gpu, &json!({ "a": "b" })))).unwrap();
        assert_eq!(changes.as_array().unwrap().len(), 2, "{changes}");
        // What it says, the index takes: with and without it, a pod asks for the same.
        let limits = json!({ "gpuzone.dev/gpu": "1", "gpuzone.dev/memory-percent": "50" });
        let with = pod(&limits, &json!({ "gpuzone.dev/defaults": "anything at all" }));
        assert_eq!(refusal(&review(&with)), "", "and who reads limits does not read it");
    }

    /// The limits that the first container of a pod has in the end.
    fn filled(limits: &Value, defaults: Defaults) -> Value {
        let review = review(&pod(limits, &json!(null)));
        let patch = patch_by(&review, defaults).unwrap_or_default();
        let mut limits = limits.clone();
        let of = "/spec/containers/0/resources/limits/";
        for change in patch.as_array().into_iter().flatten() {
            if let Some(name) = change["path"].as_str().unwrap().strip_prefix(of) {
                assert_eq!(change["op"], "add");
                limits[name.replace("~1", "/")] = change["value"].clone();
            }
        }
        limits
    }

    #[test]
    fn limits_that_are_left_out_are_filled_in() {
        let memory = MemoryBytes::new((8 << 30) - 1);
        let given = Defaults { memory, share: Some(ComputeShare::new(20).unwrap()) };
        let with = |more: &[(&str, &str)]| -> Value {
            more.iter()
                .map(|(name, number)| (format!("gpuzone.dev/{name}"), json!(number)))
                .collect()
        };
        for (written, said, wanted) in [
            // One GPU, whatever quotas say.
            (
                with(&[("memory-mib", "4096")]),
                Defaults::default(),
                with(&[("memory-mib", "4096"), ("gpu", "1")]),
            ),
            (
                with(&[("gpu", "2")]),
                given,
                with(&[("gpu", "2"), ("memory-mib", "8192"), ("share", "20")]),
            ),
            (
                with(&[("share", "70")]),
                given,
                with(&[("share", "70"), ("gpu", "1"), ("memory-mib", "8192")]),
            ),
            (
                with(&[("gpu", "1"), ("memory-percent", "100")]),
                given,
                with(&[("gpu", "1"), ("memory-percent", "100"), ("share", "20")]),
            ),
            // Without a word of memory, whole GPUs are meant, and those have all of the time.
            (with(&[("gpu", "1")]), Defaults { memory: None, ..given }, with(&[("gpu", "1")])),
            // Of these there are no parts, and what cannot be read stays.
            (with(&[("passthrough", "1")]), given, with(&[("passthrough", "1")])),
            (with(&[("mig-1g.10gb", "1")]), given, with(&[("mig-1g.10gb", "1")])),
            (with(&[("gpu", "half")]), given, with(&[("gpu", "half")])),
            (with(&[("gpu", "0"), ("share", "5")]), given, with(&[("gpu", "0"), ("share", "5")])),
            (json!({ "cpu": "1" }), given, json!({ "cpu": "1" })),
        ] {
            assert_eq!(filled(&written, said), wanted);
        }
        // It is written down, and all of it passes.
        let review = review(&pod(&with(&[("gpu", "1")]), &json!(null)));
        let changes = patch_by(&review, given).unwrap();
        let said = changes.as_array().unwrap().last().unwrap()["value"].as_str().unwrap();
        assert!(said.starts_with(
            "container app: gpuzone.dev/memory-mib: 8192 is filled in; container app: gpuzone.dev/share: 20 is filled in; topology"
        ), "{said}");
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        let good = pod(&json!({ "gpuzone.dev/gpu": "1" }), &json!(null));
        let with = |path: &str, value: Value| {
            let mut review = review(&good);
            *review.pointer_mut(path).unwrap() = value;
            review
        };
        let hostile = "\u{1b}[2J".repeat(100_000);
        let long = refusal(&with(
            "/request/object/spec/containers/0/resources/limits/gpuzone.dev~1gpu",
            json!(hostile),
        ));
        assert!(long.len() < 500 && !long.contains('\u{1b}'), "{}", long.len());
        for (review, said) in [
            (with("/request/object", json!(null)), "the pod cannot be read"),
            (with("/request/object/spec", json!("x")), "the pod cannot be read"),
            (with("/request/object/spec/containers", json!({ "a": 1 })), "the pod cannot be read"),
            (with("/request/kind/kind", json!("Deployment")), "review is of a Deployment"),
        ] {
            let refused = refusal(&review);
            assert!(refused.contains(said), "{refused} lacks {said}");
            assert_eq!(patch(&review), None);
        }
        let old = asked(validate, &with("/apiVersion", json!("admission.k8s.io/v1beta1")));
        assert_eq!(old["response"]["allowed"], false);
        let mut empty = review(&good);
        empty.as_object_mut().unwrap().remove("request");
        let answer = asked(validate, &empty);
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["message"], "the review has no request");
    }
}
