//! Processors and memory of hosts: what a node has for pods, and what a pod asks for. Whether that is
//! enough kube-scheduler decides; the engine has to know it to tell which GPUs will be of use.

use std::collections::BTreeMap;

use gpuzone_core::MemoryBytes;
use gpuzone_core::engine::{HostDemand, HostRoom};
use k8s_openapi::api::core::v1::{Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

type Quantities = BTreeMap<String, Quantity>;

/// Thousandths of processors, and bytes.
type Both = (u64, u64);

/// What a node has for pods; nothing where it does not say.
pub fn allocatable(node: &Node) -> HostRoom {
    let said = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let (cpu_milli, memory) = said.map(both).unwrap_or_default();
    HostRoom { cpu_milli, memory: MemoryBytes::saturating(memory) }
}

/// What a pod asks for, as kube-scheduler counts it: app containers and sidecars together, or an init
/// container and the sidecars before it where that is more; what the pod says of itself goes before.
pub fn requests(pod: &Pod) -> HostDemand {
    let Some(spec) = pod.spec.as_ref() else { return HostDemand::default() };
    let of = |resources: Option<&ResourceRequirements>| {
        resources.and_then(|of| of.requests.as_ref()).map(both).unwrap_or_default()
    };
    let (mut lasting, mut peak): (Both, Both) = Default::default();
    for init in spec.init_containers.iter().flatten() {
        let asked = of(init.resources.as_ref());
        let now = plus(lasting, asked);
        peak = (peak.0.max(now.0), peak.1.max(now.1));
        if init.restart_policy.as_deref() == Some("Always") {
            lasting = now;
        }
    }
    let apps = spec.containers.iter().map(|app| of(app.resources.as_ref()));
    let lasting = apps.fold(lasting, plus);
    let sum = (peak.0.max(lasting.0), peak.1.max(lasting.1));
    let own = spec.resources.as_ref().and_then(|of| of.requests.as_ref());
    let said = |name| own.and_then(|own| own.get(name));
    let sum = (
        said("cpu").map_or(sum.0, |own| thousandths(&own.0)),
        said("memory").map_or(sum.1, |own| thousandths(&own.0).div_ceil(1000)),
    );
    let (cpu_milli, memory) = plus(sum, spec.overhead.as_ref().map(both).unwrap_or_default());
    HostDemand { cpu_milli, memory: MemoryBytes::saturating(memory) }
}

fn plus(a: Both, b: Both) -> Both {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
}

fn both(of: &Quantities) -> Both {
    let of = |name: &str| of.get(name).map_or(0, |quantity| thousandths(&quantity.0));
    (of("cpu"), of("memory").div_ceil(1000))
}

/// Thousandths of a quantity, rounded up; 0 of what is none, which no API server has.
fn thousandths(quantity: &str) -> u64 {
    let text = quantity.trim();
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => (1_u64 << 40) as f64,
        "Pi" => (1_u64 << 50) as f64,
        "Ei" => (1_u64 << 60) as f64,
        exponent => match exponent.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(exponent)) => 10_f64.powi(exponent),
            Some(Err(_)) | None => 0.0,
        },
    };
    // A thousandth of a thousandth is what the division may be off by.
    let milli = number.parse::<f64>().unwrap_or(0.0) * factor * 1000.0 - 1e-3;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let milli = milli.ceil() as u64;
    milli
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn quantities_are_read_as_the_api_server_writes_them() {
        for (text, milli) in [
            ("2", 2000),
            ("0.5", 500),
            ("1500m", 1500),
            ("100u", 1),
            ("1e3", 1_000_000),
            ("3Ki", 3_072_000),
            ("2k", 2_000_000),
            ("", 0),
            ("-1", 0),
            ("lots", 0),
            ("1Xi", 0),
        ] {
            assert_eq!(thousandths(text), milli, "{text}");
        }
        assert_eq!(thousandths("99999999Ei"), u64::MAX);
    }

    fn asked(spec: Value) -> (u64, u64) {
        let pod = serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap();
        let asked = requests(&pod);
        (asked.cpu_milli, asked.memory.get())
    }

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_beside_all() {
        let of = |cpu: &str, memory: &str| json!({ "requests": { "cpu": cpu, "memory": memory } });
        let container = |cpu, memory| json!({ "name": "c", "resources": of(cpu, memory) });
        let mut sidecar = container("1", "10");
        sidecar["restartPolicy"] = json!("Always");
        let inits = json!([sidecar, container("4", "1")]);
        let apps = json!([container("1", "100"), { "name": "plain" }]);
        let mut spec = json!({ "initContainers": inits, "containers": apps });
        assert_eq!(asked(spec.clone()), (5000, 110));
        spec["overhead"] = json!({ "cpu": "250m" });
        assert_eq!(asked(spec.clone()), (5250, 110));
        spec["resources"] = json!({ "requests": { "memory": "500" } });
        assert_eq!(asked(spec), (5250, 500));
        assert_eq!(asked(json!({ "containers": [] })), (0, 0));
    }

    #[test]
    fn a_node_that_does_not_say_has_nothing() {
        let node = |status: Value| -> Node { serde_json::from_value(status).unwrap() };
        assert_eq!(allocatable(&node(json!({ "metadata": {} }))), HostRoom::default());
        let said = json!({ "metadata": {}, "status": { "allocatable": { "cpu": "31850m", "memory": "2Ki" } } });
        let room = HostRoom { cpu_milli: 31850, memory: MemoryBytes::new(2048).unwrap() };
        assert_eq!(allocatable(&node(said)), room);
    }
}
