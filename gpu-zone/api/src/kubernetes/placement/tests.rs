use gpuzone_core::GpuUuid;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn grant() -> impl Strategy<Value = Grant> {
    let memory = 1..=MemoryBytes::MAX.get();
    (any::<[u8; 16]>(), memory, 1u32..=100).prop_map(|(gpu, memory, share)| Grant {
        gpu: GpuUuid::from_bytes(gpu),
        memory: MemoryBytes::saturating(memory),
        share: ComputeShare::new(share).unwrap(),
    })
}

fn placement() -> impl Strategy<Value = PodPlacement> {
    let grants = vec(grant(), 1..9).prop_filter_map("a GPU twice", |g| Placement::of(g).ok());
    let name = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
    let containers = btree_map(name.prop_map(|n| n.parse().unwrap()), grants, 1..6);
    let node = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]{1,60}){0,3}";
    (node, name, containers).prop_map(|(node, pod, containers)| {
        PodPlacement::new(node.parse().unwrap(), pod.parse().unwrap(), containers).unwrap()
    })
}

proptest! {
    #[test]
    fn every_value_that_prints_parses(placement in placement()) {
        let text = placement.to_string();
        prop_assert!(text.len() <= MAX_PLACEMENT_BYTES);
        prop_assert_eq!(text.parse(), Ok(placement));
    }

    #[test]
    fn garbage_is_answered(text in ".{0,200}") {
        prop_assert!(text.parse::<PodPlacement>().is_err());
    }

    #[test]
    fn a_damaged_placement_is_answered(
        placement in placement(), at in any::<prop::sample::Index>(), byte in 0x20u8..0x7f,
    ) {
        let mut text = placement.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        // Either still a placement, which then prints and parses, or an error that is not long.
        match text.parse::<PodPlacement>() {
            Ok(read) => prop_assert_eq!(read.to_string().parse(), Ok(read)),
            Err(error) => prop_assert!(error.to_string().len() < 400),
        }
    }
}

/// The largest that can be made still fits the annotation.
#[test]
fn the_largest_fits() {
    let grant = |n: u8, m: u8| Grant {
        gpu: GpuUuid::from_bytes([
            n, m, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 1, 1, 1, 1,
        ]),
        memory: MemoryBytes::MAX,
        share: ComputeShare::WHOLE,
    };
    let container = |n: u8| {
        let name = format!("{}{n:03}", "c".repeat(60)).parse().unwrap();
        (name, Placement::of((0..2).map(|m| grant(n, m)).collect()).unwrap())
    };
    let node = ["n".repeat(63), "n".repeat(63), "n".repeat(63), "n".repeat(61)].join(".");
    let all = (0..64).map(container).collect();
    let largest = PodPlacement::new(node.parse().unwrap(), "p".repeat(63).parse().unwrap(), all);
    let text = largest.unwrap().to_string();
    assert!(text.len() <= MAX_PLACEMENT_BYTES, "{}", text.len());
    assert!(text.parse::<PodPlacement>().is_ok());
    let too_many = (0..65).map(container).collect();
    let pod: PodUid = "p".parse().unwrap();
    let node: NodeName = "n".parse().unwrap();
    let refused = PodPlacement::new(node.clone(), pod.clone(), too_many);
    assert_eq!(refused, Err(PlacementError::TooMany));
    assert_eq!(PodPlacement::new(node, pod, BTreeMap::new()), Err(PlacementError::Empty));
}

#[test]
fn what_is_wrong_is_said() {
    let gpu = "GPU-00000000-0000-0000-0000-000000000001";
    let one = format!(r#"{{"gpu":"{gpu}","memory":"8Gi","share":50}}"#);
    let with = |version: &str, containers: &str| {
        format!(r#"{{"version":{version},"node":"n","pod":"p","containers":{containers}}}"#)
    };
    let read = |text: &str| text.parse::<PodPlacement>().map(drop).map_err(|e| e.to_string());
    let good = with("1", &format!(r#"{{"c":[{one}]}}"#));
    assert_eq!(read(&good), Ok(()));
    let cases = [
        (with("2", "7"), "version 2"),
        (with("18446744073709551615", "{}"), "version 18446744073709551615"),
        (with("1", "{}"), "at least one container"),
        (with("1", r#"{"c":[]}"#), "for container c: a placement names at least one GPU"),
        (with("1", &format!(r#"{{"c":[{one},{one}]}}"#)), "twice"),
        (with("1", &format!(r#"{{"C":[{one}]}}"#)), "container name 'C'"),
        (good.replace("8Gi", "0"), "gives none"),
        (good.replace("8Gi", "8GB"), "unknown unit"),
        (good.replace("50", "0"), "share '0'"),
        (good.replace("50", "50,\"class\":\"gold\""), "unknown field"),
        (good.replace(gpu, "0"), "GPU '0'"),
        (good.replace("\"n\"", "\"N_\""), "node name 'N_'"),
        ("{}".into(), "missing field `version`"),
        (format!("{}{}", good, " ".repeat(MAX_PLACEMENT_BYTES)), "bytes"),
    ];
    for (text, part) in cases {
        let error = read(&text).unwrap_err();
        assert!(error.contains(part), "{error} lacks {part}");
    }
}
