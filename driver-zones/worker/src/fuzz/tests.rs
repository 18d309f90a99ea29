use std::path::Path;
use std::sync::OnceLock;

use gpuzone_wire::ring::Bulk;
use gpuzone_wire::spec::{Call, ContextId, Opcode, Pieces, StreamId, dispatch};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

const HEADER: usize = 32;

/// A record with honest lengths, as `ring::Header` lays it out.
fn record(opcode: u16, flags: u16, context: u32, control: &[u8], bulk: &[u8]) -> Vec<u8> {
    let bulk_at = HEADER + control.len().next_multiple_of(16);
    let total = (bulk_at + bulk.len()).next_multiple_of(HEADER);
    let word = |length: usize| u32::try_from(length).expect("short").to_le_bytes();
    let mut bytes: Vec<u8> =
        [total, control.len(), bulk.len()].into_iter().flat_map(word).collect();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(context.to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(control);
    bytes.resize(bulk_at, 0);
    bytes.extend(bulk);
    bytes.resize(total, 0);
    bytes
}

struct Nowhere;

impl Pieces for Nowhere {
    fn send(
        &mut self,
        length: usize,
        fill: &mut dyn FnMut(*mut u8) -> Result<(), CuResult>,
    ) -> Result<(), CuResult> {
        fill(vec![0u8; length].as_mut_ptr())
    }
}

/// How many bytes of zeros are a call, for each: its fields, with lists and texts that are empty.
fn lengths() -> &'static [usize] {
    static LENGTHS: OnceLock<Vec<usize>> = OnceLock::new();
    LENGTHS.get_or_init(|| {
        arena(|arena| *arena = Arena::default());
        let mut session =
            Session::new(lease().expect("a lease"), Arc::default(), LinePlace::default());
        let mut is_call = |opcode: Opcode, length: &usize| {
            let mut call = Call { context: ContextId(0), bulk: Bulk::NONE, pieces: &mut Nowhere };
            let control = vec![0; *length];
            dispatch(&mut session, opcode, &control, &mut call, &mut Vec::new()).is_ok()
        };
        let of = |opcode: &Opcode| (0..512).find(|length| is_call(*opcode, length));
        Opcode::ALL.iter().map(of).map(|length| length.expect("a call is short")).collect()
    })
}

/// Numbers that now and then fit: small ones, the first addresses and streams, and wild ones.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..5,
        3 => (1u64..12).prop_map(|number| number << 32),
        2 => (0u64..3).prop_map(|stream| u64::from(StreamId::FIRST) + stream),
        1 => 0u64..LIMIT + 64,
        1 => any::<u64>(),
    ]
}

/// A call's fields: zeros, of which some are replaced.
fn fields(length: usize) -> impl Strategy<Value = Vec<u8>> {
    let places = length.div_ceil(4).max(1);
    proptest::collection::vec((0..places, word(), any::<bool>()), 0..6).prop_map(move |set| {
        let mut control = vec![0; length];
        for (place, word, long) in set {
            let bytes = &word.to_le_bytes()[..if long { 8 } else { 4 }];
            let from = place * 4;
            for (to, byte) in control.iter_mut().skip(from).zip(bytes) {
                *to = *byte;
            }
        }
        control
    })
}

fn records() -> impl Strategy<Value = Vec<u8>> {
    let bulk = || {
        prop_oneof![
            2 => Just(Vec::new()),
            1 => proptest::collection::vec(any::<u8>(), 0..600),
        ]
    };
    let call = (0..Opcode::ALL.len()).prop_flat_map(move |number| {
        let opcode = u16::try_from(number).expect("few");
        // Most are made in the one context that is there from the beginning.
        let context = prop_oneof![6 => Just(1u32), 1 => 0u32..4];
        (Just(opcode), 0u16..2, context, fields(lengths()[number]), bulk())
    });
    let made = call.prop_map(|(opcode, flags, context, control, bulk)| {
        record(opcode, flags, context, &control, &bulk)
    });
    let wild = (any::<u16>(), any::<u16>(), fields(24))
        .prop_map(|(opcode, flags, control)| record(opcode, flags, 1, &control, &[]));
    let one = prop_oneof![40 => made, 1 => wild];
    proptest::collection::vec(one, 0..60).prop_map(|records| records.concat())
}

/// Creates a context and allocates, so that later records find something.
fn beginning() -> Vec<u8> {
    let create: Vec<u8> = [1u32, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    let allocate =
        |bytes: u64| record(Opcode::MemoryAllocate as u16, 1, 1, &bytes.to_le_bytes(), &[]);
    [record(Opcode::ContextCreate as u16, 1, 0, &create, &[]), allocate(4096), allocate(100)]
        .concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn records_of_any_kind_do_no_harm(
        records in records(),
        spoilt in prop_oneof![9 => Just(0u64), 1 => any::<u64>(), 1 => 0u64..64],
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut input = [&spoilt.to_le_bytes()[..], &beginning(), &records].concat();
        for (at, with) in flips {
            let at = at.index(input.len());
            input[at] ^= with;
        }
        ring(&lease().expect("a lease"), &input);
    }

    #[test]
    fn bytes_of_any_kind_do_no_harm(input in proptest::collection::vec(any::<u8>(), 0..2000)) {
        ring(&lease().expect("a lease"), &input);
    }
}

#[test]
fn what_fuzzing_found_or_began_with_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/ring");
    let lease = lease().expect("a lease");
    let mut calls = 0;
    for file in std::fs::read_dir(&corpus).expect("the corpus is checked in") {
        calls += ring(&lease, &std::fs::read(file.expect("an entry").path()).expect("readable"));
    }
    assert!(calls > 300, "the corpus has calls that are taken for some: {calls}");
}

/// What is drawn is not refused at once: most of it are calls that are done.
#[test]
fn records_that_are_drawn_are_calls() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let lease = lease().expect("a lease");
    let mut draw = || records().new_tree(&mut runner).expect("a value").current();
    let calls = |_| ring(&lease, &[&[0u8; 8][..], &beginning(), &draw()].concat());
    let calls: usize = (0..50).map(calls).sum();
    assert!(calls > 500, "{calls} calls in 50 draws");
}

/// The watching driver would see it: what must not be asked is found out.
#[test]
fn the_driver_that_watches_sees_a_step_too_far() {
    arena(|arena| *arena = Arena::default());
    let address = arena(|arena| arena.place(16, 0));
    // SAFETY: no pointer among the arguments.
    let set = |address, count| unsafe { set_32(address, 0, count, std::ptr::null_mut()) };
    assert!(set(address, 4).is_success() && arena(|arena| arena.wrong.take()).is_none());
    assert!(set(address, 5).is_success());
    assert!(arena(|arena| arena.wrong.take()).expect("seen").contains("20 bytes"));
}

/// Writes the corpus anew: each call once, well made, in one context.
#[test]
#[ignore = "writes the corpus that is checked in"]
fn corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/ring");
    std::fs::create_dir_all(&folder).expect("made");
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let lease = lease().expect("a lease");
    for number in 0..80 {
        let tail = records().new_tree(&mut runner).expect("a value").current();
        let input = [&[0u8; 8][..], &beginning(), &tail].concat();
        if ring(&lease, &input) > 12 {
            std::fs::write(folder.join(format!("records-{number:02}")), input).expect("written");
        }
    }
    let spoilt = [&(!0u64).to_le_bytes()[..], &beginning()].concat();
    std::fs::write(folder.join("spoilt-tail"), spoilt).expect("written");
}
