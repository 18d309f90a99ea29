//! Sequences of what may happen, against a model that knows no cleverness: it tries everything.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::devices::Slices;

fn address(bus: u8) -> PciAddress {
    PciAddress::new(0, bus, 0, 0).unwrap()
}

fn lease(number: u128) -> LeaseId {
    LeaseId::from_uuid(uuid::Uuid::from_u128(number))
}

fn kind(mode: PartMode, name: &str, room: Room) -> PartKind {
    PartKind { mode, name: name.into(), memory: None, room }
}

fn at(places: &[(u8, u8)]) -> Room {
    Room::At(places.iter().map(|(start, count)| Slices::new(*start, *count).unwrap()).collect())
}

/// A device of each sort: one for MIG and sharing, one with time-sliced vGPUs of a vendor and MIG
/// beside them, one with virtual functions that go beside sharing, and one for mediated devices.
fn node() -> Vec<Device> {
    let mig = |count| {
        vec![
            kind(
                PartMode::Mig,
                "1g",
                at(&[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]),
            ),
            kind(PartMode::Mig, "2g", at(&[(0, 2), (2, 2), (4, 2)])),
            kind(PartMode::Mig, "3g", at(&[(0, 4), (4, 4)])),
            kind(PartMode::Mig, "7g", at(&[(0, 8)])),
        ][..count]
            .to_vec()
    };
    let memory = Some(MemoryBytes::gib(16));
    let plain = |bus| Device {
        address: address(bus),
        mediated: memory,
        whole: true,
        kinds: Vec::new(),
        beside: BTreeSet::new(),
    };
    let (mediated, vf) = (Mode::Mediated, Mode::Parts(PartMode::Vf));
    let vgpus = [("8q", 2), ("4q", 4)]
        .map(|(name, most)| kind(PartMode::VendorVgpu, name, Room::Alike(most)));
    let vfs = at(&[(0, 1), (1, 1), (2, 1)]);
    vec![
        Device { kinds: mig(4), ..plain(1) },
        Device { kinds: vgpus.into_iter().chain(mig(3)).collect(), ..plain(2) },
        Device {
            kinds: vec![kind(PartMode::Vf, "vf", vfs)],
            beside: [(mediated, vf)].into(),
            whole: false,
            ..plain(3)
        },
        Device {
            kinds: vec![kind(PartMode::Mdev, "i915-GVTg_V5_4", Room::Alike(2))],
            mediated: None,
            ..plain(4)
        },
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Take(u8, Want, Option<u8>),
    Release(u8),
    Out(u8),
    Back(u8),
}

fn want() -> impl Strategy<Value = Want> {
    let names = ["1g", "2g", "3g", "7g", "8q", "4q", "vf", "i915-GVTg_V5_4", "none"];
    let part = (prop::sample::select(&PartMode::ALL[..]), prop::sample::select(names.to_vec()));
    prop_oneof![
        Just(Want::Whole),
        (1u64..9, 1u32..60).prop_map(|(gib, share)| Want::Mediated {
            memory: MemoryBytes::gib(gib),
            share: ComputeShare::new(share).unwrap(),
        }),
        part.prop_map(|(mode, kind)| Want::Part { mode, kind: kind.into() }),
        prop::sample::select(vec![
            (PartMode::Mig, "1g"),
            (PartMode::Mig, "2g"),
            (PartMode::Mig, "3g"),
            (PartMode::VendorVgpu, "4q"),
            (PartMode::Vf, "vf"),
        ])
        .prop_map(|(mode, kind)| Want::Part { mode, kind: kind.into() }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0u8..12, want(), prop::option::of(1u8..6)).prop_map(|(l, w, d)| Act::Take(l, w, d)),
        3 => (0u8..12).prop_map(Act::Release),
        1 => (1u8..5).prop_map(Act::Out),
        1 => (1u8..5).prop_map(Act::Back),
    ]
}

/// Whether these can be held of a device at once, from its description alone.
fn legal(device: &Device, portions: &[Portion]) -> bool {
    let modes: BTreeSet<Mode> = portions.iter().map(Portion::mode).collect();
    let pairs = modes.iter().flat_map(|one| modes.iter().map(move |other| (*one, *other)));
    let together = pairs.filter(|(one, other)| one != other).all(|(one, other)| {
        one != Mode::Whole
            && other != Mode::Whole
            && (device.beside.contains(&(one, other)) || device.beside.contains(&(other, one)))
    });
    let wholes = portions.iter().filter(|portion| **portion == Portion::Whole).count();
    let (mut memory, mut time) = (0, 0);
    let mut alike: BTreeSet<(PartMode, &str)> = BTreeSet::new();
    let (mut taken, mut instances) = (BTreeSet::new(), BTreeSet::new());
    let mut placed: BTreeSet<PartMode> = BTreeSet::new();
    for portion in portions {
        match portion {
            Portion::Whole if device.whole => {}
            Portion::Mediated { memory: part, share } if device.mediated.is_some() => {
                memory += part.get();
                time += share.percent();
            }
            Portion::Part { mode, kind, place } => match device.kind(*mode, kind) {
                Some(PartKind { room: Room::Alike(most), .. }) => {
                    alike.insert((*mode, kind));
                    if place >= most || !instances.insert((*mode, *place)) {
                        return false;
                    }
                }
                Some(PartKind { room: Room::At(places), .. }) => {
                    let Some(place) = places.get(*place as usize) else { return false };
                    placed.insert(*mode);
                    for slice in place.start()..place.start() + place.count() {
                        if !taken.insert((*mode, slice)) {
                            return false;
                        }
                    }
                }
                None => return false,
            },
            Portion::Whole | Portion::Mediated { .. } => return false,
        }
    }
    let one_kind = PartMode::ALL.iter().all(|mode| {
        let kinds = alike.iter().filter(|(of, _)| of == mode).count();
        kinds <= 1 && (kinds == 0 || !placed.contains(mode))
    });
    let enough = memory <= device.mediated.map_or(0, MemoryBytes::get) && time <= 100;
    together && wholes <= 1 && one_kind && enough
}

/// Everything that would serve `want` of a device.
fn candidates(device: &Device, want: &Want) -> Vec<Portion> {
    match want {
        Want::Whole => vec![Portion::Whole],
        Want::Mediated { memory, share } => {
            vec![Portion::Mediated { memory: *memory, share: *share }]
        }
        Want::Part { mode, kind } => (0..9)
            .map(|place| Portion::Part { mode: *mode, kind: kind.clone(), place })
            .filter(|_| device.kind(*mode, kind).is_some())
            .collect(),
    }
}

fn of(held: &[(LeaseId, Held)], device: PciAddress) -> Vec<Portion> {
    let of = held.iter().filter(|(_, held)| held.device == device);
    of.map(|(_, held)| held.portion.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_held_is_always_legal_and_a_refusal_is_always_right(
        acts in prop::collection::vec(act(), 1..60)
    ) {
        let devices = node();
        let mut allocator = Allocator::new(devices.clone());
        let mut held: Vec<(LeaseId, Held)> = Vec::new();
        let mut out = BTreeSet::new();
        for act in acts {
            match act {
                Act::Take(number, want, on) => {
                    let on = on.map(address);
                    let serves = devices.iter().filter(|device| {
                        on.is_none_or(|on| on == device.address) && !out.contains(&device.address)
                    });
                    let possible = serves.flat_map(|device| {
                        let beside = of(&held, device.address);
                        candidates(device, &want).into_iter().filter(move |portion| {
                            let mut all = beside.clone();
                            all.push(portion.clone());
                            legal(device, &all)
                        }).map(|portion| Held { device: device.address, portion })
                    }).collect::<Vec<_>>();
                    match allocator.take(lease(number.into()), &want, on) {
                        Ok(got) => {
                            prop_assert!(possible.contains(&got), "{got:?} of {possible:?}");
                            held.push((lease(number.into()), got));
                        }
                        Err(refusal) => {
                            prop_assert!(possible.is_empty(), "{refusal} though {possible:?}");
                        }
                    }
                }
                Act::Release(number) => {
                    let gone = allocator.release(lease(number.into()));
                    let own = |(holder, _): &&(LeaseId, Held)| *holder == lease(number.into());
                    let expected: Vec<Held> =
                        held.iter().filter(own).map(|(_, held)| held.clone()).collect();
                    prop_assert_eq!(gone, expected);
                    held.retain(|(holder, _)| *holder != lease(number.into()));
                }
                Act::Out(bus) => {
                    allocator.take_out(address(bus), "a test".into());
                    out.insert(address(bus));
                }
                Act::Back(bus) => {
                    allocator.put_back(address(bus));
                    out.remove(&address(bus));
                }
            }
        }
        // What a journal says of it comes back the same, in whatever order.
        let mut again = Allocator::new(devices);
        for (holder, held) in held.iter().rev() {
            let restored = again.restore(*holder, held.clone());
            prop_assert!(restored.is_ok(), "{restored:?}");
            // A second time it would be somebody else's.
            let twice = matches!(held.portion, Portion::Whole | Portion::Part { .. });
            prop_assert!(!twice || again.restore(*holder, held.clone()).is_err());
        }
    }
}

#[test]
fn places_are_kept_for_those_that_need_them() {
    let mut allocator = Allocator::new(vec![node().swap_remove(0)]);
    let part = |name: &str| Want::Part { mode: PartMode::Mig, kind: name.into() };
    // The slice that no other kind could use goes first, and a large part fits still.
    for number in 0..3 {
        allocator.take(lease(number), &part("1g"), None).unwrap();
    }
    allocator.take(lease(3), &part("3g"), None).unwrap();
}

#[test]
fn a_refusal_says_what_is_in_the_way() {
    let mut allocator = Allocator::new(node());
    let part = |mode, name: &str| Want::Part { mode, kind: name.into() };
    let says = |allocator: &mut Allocator, want: &Want, bus: u8, word: &str| {
        let said = allocator.take(lease(9), want, Some(address(bus))).unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
    };
    allocator.take(lease(1), &part(PartMode::Mig, "3g"), Some(address(1))).unwrap();
    says(&mut allocator, &Want::Whole, 1, "in use as mig, and its hardware cannot be both");
    allocator.take(lease(1), &part(PartMode::VendorVgpu, "8q"), Some(address(2))).unwrap();
    says(&mut allocator, &part(PartMode::VendorVgpu, "4q"), 2, "parts of the kind '8q'");
    says(&mut allocator, &part(PartMode::Mig, "1g"), 2, "in use as vendor-vgpu");
    says(&mut allocator, &Want::Whole, 3, "does not offer");
    says(&mut allocator, &Want::Whole, 77, "none that may be asked");
    allocator.take_out(address(4), "its memory was kept by a reset".into());
    says(&mut allocator, &Want::Whole, 4, "out of service: its memory was kept");
    let beside = Held { device: address(1), portion: Portion::Whole };
    let said = allocator.restore(lease(2), beside).unwrap_err().to_string();
    assert!(said.contains("in use as mig"), "{said}");
}
