//! Leases of whole GPUs that their holder has itself, with the real agent and a folder that stands
//! for sysfs.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use gpuzone_api::agent::v1 as agent;
    use gpuzone_api::placements::v1::placements_client::PlacementsClient;
    use gpuzone_api::placements::v1::{self as proto, PlacedGpu};
    use gpuzone_api::{AgentError, ErrorKind};
    use gpuzone_testkit::Sysfs;
    use rustix::process::Signal;

    use super::support::{Node, connect, request};

    const WHOLE: &str = "GPU-00000000-0000-0000-0000-00000000abcd";
    const ADDRESS: &str = "0000:3b:00.0";

    /// A simulated GPU, and one on vfio-pci beside it that the driver does not see.
    async fn start() -> (Node, Sysfs) {
        let node = Node::prepare();
        let sysfs = Sysfs::new(&node.path("sys")).unwrap();
        sysfs.gpu(ADDRESS, 12).unwrap();
        node.configure("run_dir = \"run\"", "run_dir = \"run\"\nsysfs = \"sys\"");
        let table = format!(
            "[[gpu]]\nuuid = \"{WHOLE}\"\nexposure = \"passthrough\"\naddress = \"{ADDRESS}\"\n\
             model = \"gpu-zone Simulated GPU\"\nmemory = \"80Gi\"\n[usage]"
        );
        node.configure("[usage]", &table);
        let mut node = node;
        node.start_agent().await;
        (node, sysfs)
    }

    fn wanted(holder: &str, gpu: &str, gib: u64, share_percent: u32) -> proto::PlaceRequest {
        let memory_bytes = gib << 30;
        proto::PlaceRequest {
            holder: holder.into(),
            tenant: "acme".into(),
            gpus: vec![PlacedGpu {
                gpu_uuid: gpu.into(),
                memory_bytes,
                share_percent,
                node: String::new(),
            }],
            slot: String::new(),
            folder: String::new(),
            program: "team/app".into(),
            exposure: "passthrough".into(),
            quotas: Vec::new(),
            group: String::new(),
        }
    }

    async fn client(node: &Node) -> PlacementsClient<tonic::transport::Channel> {
        let socket = node.directories().agent_socket();
        PlacementsClient::new(connect(&socket).await.unwrap())
    }

    async fn place(
        node: &Node,
        asked: proto::PlaceRequest,
    ) -> Result<proto::PlacedLease, AgentError> {
        let placed = client(node).await.place(asked).await.map_err(AgentError::from)?;
        Ok(placed.into_inner().lease.unwrap())
    }

    async fn gpus(node: &Node) -> Vec<agent::Gpu> {
        let asked = agent::ListGpusRequest {};
        node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus
    }

    #[tokio::test]
    async fn a_whole_gpu_is_leased_billed_and_kept_from_the_next() {
        let (mut node, sysfs) = start().await;
        let listed = gpus(&node).await;
        let [mediated, whole] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((mediated.exposure.as_str(), mediated.vfio.as_ref()), ("mediated", None));
        let function = agent::VfioFunction { group: 12, device: "vfio12".into() };
        assert_eq!(
            (whole.exposure.as_str(), whole.vfio.as_ref()),
            ("passthrough", Some(&function))
        );

        // A GPU of either kind is leased in its way only, and whole.
        let on_mediated = place(&node, wanted("pod/1/a", &mediated.uuid, 16, 100)).await;
        assert!(on_mediated.unwrap_err().message.contains("handed over as mediated"));
        let in_slot = proto::PlaceRequest {
            exposure: String::new(),
            slot: "slot-1".into(),
            folder: format!("{:016x}", 1),
            ..wanted("pod/1/a", WHOLE, 80, 100)
        };
        assert!(place(&node, in_slot).await.unwrap_err().message.contains("as passthrough"));
        let part = place(&node, wanted("pod/1/a", WHOLE, 40, 50)).await.unwrap_err();
        assert!(part.message.contains("handed over whole"), "{}", part.message);
        let poor =
            proto::PlaceRequest { tenant: "small".into(), ..wanted("pod/1/a", WHOLE, 80, 100) };
        assert_eq!(place(&node, poor).await.unwrap_err().kind, ErrorKind::Quota);
        assert!(node.leases().await.is_empty());

        // What sysfs says now counts.
        sysfs.bind(ADDRESS, Some("nvidia")).unwrap();
        let said = place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap_err().message;
        assert!(said.contains("bound to nvidia, not to a VFIO driver"), "{said}");
        assert!(gpus(&node).await[1].not_ready.is_some());
        sysfs.bind(ADDRESS, Some("vfio-pci")).unwrap();
        let lease = place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap();
        assert_eq!((lease.state.as_str(), lease.exposure.as_str()), ("active", "passthrough"));
        let twice = place(&node, wanted("pod/2/b", WHOLE, 80, 100)).await.unwrap_err();
        assert_eq!(twice.kind, ErrorKind::NoRoom);

        // It goes on through the agent's restart, and is the same lease.
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap().id, lease.id);

        // At its end nobody can say that it is clear.
        let end = proto::EndRequest { lease_id: lease.id.clone(), reason: "over".into() };
        client(&node).await.end(end).await.unwrap();
        assert!(node.leases().await.is_empty());
        let reason = gpus(&node).await[1].quarantine.clone().unwrap();
        assert!(reason.contains("tenant acme had it by passthrough"), "{reason}");
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let next = place(&node, wanted("pod/2/b", WHOLE, 80, 100)).await.unwrap_err();
        assert!(next.message.contains("is in quarantine"), "{}", next.message);
        let clear = agent::ClearQuarantineRequest { gpu: WHOLE.into() };
        let refused = node.client().await.clear_quarantine(clear).await.unwrap_err();
        assert!(refused.message().contains("bind it to its own driver"), "{refused}");
        assert!(refused.message().contains("reset = true"), "{refused}");
        node.signal_agent(Signal::INT);
    }

    #[tokio::test]
    async fn a_program_is_told_what_to_open_of_a_whole_gpu_and_holds_it_to_its_end() {
        let (mut node, sysfs) = start().await;
        let asked = || agent::CreateLeaseRequest {
            memory_bytes: None,
            share_percent: None,
            exposure: "passthrough".into(),
            ..request("acme", 0)
        };
        sysfs.bind(ADDRESS, Some("nvidia")).unwrap();
        let refused = node.client().await.create_lease(asked()).await.unwrap_err();
        assert!(refused.message().contains("bound to nvidia, not to a VFIO driver"), "{refused}");
        assert!(node.leases().await.is_empty());
        sysfs.bind(ADDRESS, Some("vfio-pci")).unwrap();
        let part = agent::CreateLeaseRequest { memory_bytes: Some(8 << 30), ..asked() };
        let part = node.client().await.create_lease(part).await.unwrap_err();
        assert!(part.message().contains("handed over whole"), "{part}");

        let granted = node.client().await.create_lease(asked()).await.unwrap().into_inner();
        let function = agent::PassedFunction { address: ADDRESS.into(), group: 12, vf_token: None };
        assert_eq!(granted.functions, [function]);
        let lease = granted.lease.unwrap();
        assert_eq!(lease.state, "active");
        let second = node.client().await.create_lease(asked()).await.unwrap_err();
        assert_eq!(AgentError::from(second).kind, ErrorKind::NoRoom);

        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let held = node.leases().await;
        let held: Vec<_> = held.iter().map(|it| (&it.id, it.state.as_str())).collect();
        assert_eq!(held, [(&lease.id, "active")]);
        let end = agent::EndLeaseRequest { lease_id: lease.id.clone() };
        node.client().await.end_lease(end).await.unwrap();
        let reason = gpus(&node).await[1].quarantine.clone().unwrap();
        assert!(reason.contains("tenant acme had it by passthrough"), "{reason}");
        node.signal_agent(Signal::INT);
    }

    #[tokio::test]
    async fn a_functions_token_reaches_its_holder_and_nobody_who_reads_along() {
        use std::os::unix::fs::PermissionsExt;
        const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";
        let (mut node, _sysfs) = start().await;
        let file = node.path("token");
        let key = "exposure = \"passthrough\"";
        node.configure(key, &format!("{key}\nvf_token_file = {file:?}"));
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let asked = || agent::CreateLeaseRequest {
            memory_bytes: None,
            share_percent: None,
            exposure: "passthrough".into(),
            ..request("acme", 0)
        };
        let put = |text: &str, mode| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let refused = node.client().await.create_lease(asked()).await.unwrap_err();
        assert!(refused.message().contains("its token cannot be read"), "{refused}");
        for (text, mode, part) in [(TOKEN, 0o644, "mode 0400"), ("secret", 0o600, "no UUID alone")]
        {
            put(text, mode);
            let refused = node.client().await.create_lease(asked()).await.unwrap_err();
            let said = refused.message();
            assert!(said.contains(part) && !said.contains(text), "{said}");
        }
        assert!(node.leases().await.is_empty(), "refused before anything was held");
        put(&format!("{TOKEN}\n"), 0o600);
        let granted = node.client().await.create_lease(asked()).await.unwrap().into_inner();
        let token = granted.functions[0].vf_token.as_ref().unwrap();
        assert_eq!(token.uuid, TOKEN);
        let end = agent::EndLeaseRequest { lease_id: granted.lease.unwrap().id };
        node.client().await.end_lease(end).await.unwrap();
        node.signal_agent(Signal::INT);
        for name in super::support::listing(node.folder.path()) {
            let path = node.folder.path().join(&name);
            // A simulated GPU's memory, nearly all of it a hole.
            if path.metadata().is_ok_and(|found| found.len() > 16 << 20) {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap_or_default();
            let found = bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
            assert_eq!(found, path == file, "{}", name.display());
        }
    }

    #[tokio::test]
    async fn a_function_that_opens_with_a_token_is_refused_where_none_is_handed_over() {
        use std::os::unix::fs::PermissionsExt;
        const PHYSICAL: &str = "0000:3b:00.7";
        let (mut node, sysfs) = start().await;
        sysfs.function(PHYSICAL, "0x030200").unwrap();
        sysfs.bind(PHYSICAL, Some("vfio-pci")).unwrap();
        sysfs.virtual_of(ADDRESS, PHYSICAL).unwrap();
        let asked = || agent::CreateLeaseRequest {
            memory_bytes: None,
            share_percent: None,
            exposure: "passthrough".into(),
            ..request("acme", 0)
        };
        // Nobody has told the token.
        let refused = node.client().await.create_lease(asked()).await.unwrap_err();
        let whose = format!("{ADDRESS} is a virtual function of {PHYSICAL}, which is on VFIO");
        assert!(refused.message().contains(&whose), "{refused}");
        assert!(refused.message().contains("[[gpu]] as vf_token_file"), "{refused}");
        let said = place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap_err().message;
        assert!(said.contains(&whose), "{said}");
        assert_eq!(
            gpus(&node).await[1].not_ready.as_ref().map(|why| why.contains(&whose)),
            Some(true)
        );
        // With the physical one on its own driver there is no token.
        sysfs.bind(PHYSICAL, Some("xe")).unwrap();
        assert_eq!(gpus(&node).await[1].not_ready, None);
        sysfs.bind(PHYSICAL, Some("vfio-pci")).unwrap();

        // A program of this node's gets it; what starts a pod's VM could not hand it on.
        let file = node.path("token");
        std::fs::write(&file, "00112233-4455-6677-8899-aabbccddeeff").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = "exposure = \"passthrough\"";
        node.configure(key, &format!("{key}\nvf_token_file = {file:?}"));
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let said = place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap_err().message;
        assert!(said.contains(&format!("{ADDRESS} has a vf_token_file")), "{said}");
        assert!(said.contains("gpu-zone run --zone-kind microvm --exposure passthrough"), "{said}");
        assert!(node.leases().await.is_empty());
        let listed = gpus(&node).await.remove(1);
        assert_eq!(listed.not_ready, None);
        assert!(said.contains(&listed.kept_from_pods.unwrap()), "{said}");
        let granted = node.client().await.create_lease(asked()).await.unwrap().into_inner();
        assert!(granted.functions[0].vf_token.is_some());
        // Or the agent would end its holder, which is this process.
        let end = agent::EndLeaseRequest { lease_id: granted.lease.unwrap().id };
        node.client().await.end_lease(end).await.unwrap();
        node.signal_agent(Signal::INT);
    }

    #[tokio::test]
    async fn a_driver_zone_is_given_no_function_that_opens_with_a_token() {
        let (mut node, sysfs) = start().await;
        node.signal_agent(Signal::KILL);
        let other = "0000:5e:00.1";
        let zone = format!(
            "[zone.microvm]\nkernel = \"k\"\nimage = \"i\"\ndevices = [{other:?}]\n[usage]"
        );
        node.configure("[usage]", &zone);
        sysfs.gpu(other, 30).unwrap();
        sysfs.gpu("0000:5e:00.0", 31).unwrap();
        sysfs.virtual_of(other, "0000:5e:00.0").unwrap();
        let said = node.refused();
        assert!(said.contains(&format!("{other} is a virtual function of 0000:5e:00.0")), "{said}");
        assert!(said.contains("[zone.microvm] devices"), "{said}");
    }

    #[tokio::test]
    async fn a_reset_that_cannot_be_done_leaves_the_gpu_in_quarantine_and_says_why() {
        let (mut node, sysfs) = start().await;
        let key = "exposure = \"passthrough\"";
        node.configure(key, &format!("{key}\nbind = true\nreset = true"));
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        // It is on VFIO already, so nothing had to be done, and nothing is to be given back.
        assert_eq!(gpus(&node).await[1].not_ready, None);
        let lease = place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap();
        // While somebody has it, an operator does not reset it either.
        let end = proto::EndRequest { lease_id: lease.id.clone(), reason: "over".into() };
        client(&node).await.end(end).await.unwrap();
        let reason = gpus(&node).await[1].quarantine.clone().unwrap();
        // This machine has no such device: what opens it says so, and nothing took it for clear.
        let (had, why) = ("tenant acme had it by passthrough", "VFIO");
        assert!(reason.contains(had) && reason.contains(why), "{reason}");
        let clear = || agent::ClearQuarantineRequest { gpu: WHOLE.into() };
        let refused = node.client().await.clear_quarantine(clear()).await.unwrap_err();
        assert!(refused.message().contains("stays in quarantine"), "{refused}");
        let next = place(&node, wanted("pod/2/b", WHOLE, 80, 100)).await.unwrap_err();
        assert!(next.message.contains("is in quarantine"), "{}", next.message);
        // A damaged journal of devices: nobody knows what was done to them, so nothing is.
        node.signal_agent(Signal::KILL);
        std::fs::write(node.directories().state.join("devices"), "damage\n").unwrap();
        let said = node.refused();
        assert!(said.contains("devices is damaged in line 1"), "{said}");
        drop(sysfs);
    }

    /// As a VM may have had it before its pod was refused.
    #[tokio::test]
    async fn what_somebody_may_have_had_without_a_lease_is_kept_from_the_next() {
        let (node, _sysfs) = start().await;
        let clear = async |gpu: &str| {
            let asked = proto::ClearRequest { gpu_uuid: gpu.into(), had_by: "the pod 7".into() };
            client(&node).await.clear(asked).await.map(|answer| answer.into_inner().clear)
        };
        let mediated = gpus(&node).await[0].uuid.clone();
        let refused = clear(&mediated).await.unwrap_err();
        assert!(refused.message().contains("no device that a container can have"), "{refused}");
        // Nothing here resets it, and asking twice changes nothing.
        assert!(!clear(WHOLE).await.unwrap());
        let reason = gpus(&node).await[1].quarantine.clone().unwrap();
        assert!(reason.contains("the pod 7 may have had it without a lease"), "{reason}");
        assert!(!clear(WHOLE).await.unwrap());
        assert_eq!(gpus(&node).await[1].quarantine.clone().unwrap(), reason);
        let next = place(&node, wanted("pod/1/a", WHOLE, 80, 100)).await.unwrap_err();
        assert!(next.message.contains("is in quarantine"), "{}", next.message);
    }

    #[tokio::test]
    async fn every_function_of_the_machine_is_listed_whatever_has_it() {
        let (node, sysfs) = start().await;
        sysfs.function("0000:3b:00.1", "0x040300").unwrap();
        sysfs.group("0000:3b:00.1", 12).unwrap();
        sysfs.function("0000:01:00.0", "0x020000").unwrap();
        let asked = agent::ListDevicesRequest {};
        let listed = node.client().await.list_devices(asked).await.unwrap().into_inner().devices;
        let [gpu, sound] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((gpu.address.as_str(), gpu.kind.as_str()), (ADDRESS, "gpu"));
        assert_eq!((gpu.driver.as_deref(), gpu.iommu_group), (Some("vfio-pci"), Some(12)));
        assert_eq!(gpu.group_members, [ADDRESS, "0000:3b:00.1"]);
        assert_eq!(gpu.vfio_device.as_deref(), Some("vfio12"));
        assert_eq!((sound.kind.as_str(), sound.driver.as_deref()), ("audio", None));
    }

    #[tokio::test]
    async fn a_configuration_that_contradicts_the_driver_is_refused() {
        let node = Node::prepare();
        let table = format!(
            "[[gpu]]\nuuid = \"{WHOLE}\"\nexposure = \"passthrough\"\naddress = \"{ADDRESS}\"\n\
             model = \"x\"\nmemory = \"80Gi\"\n[usage]"
        );
        node.configure("[usage]", &table);
        let said = node.refused();
        assert!(said.contains("needs [node] sysfs"), "{said}");
    }
}
