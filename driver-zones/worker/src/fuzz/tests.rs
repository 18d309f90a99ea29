use std::collections::HashSet;
use std::path::{Path, PathBuf};

use gpuzone_wire::spec::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::arena::Kind;
use super::calls::{Made, address, beginning, each_call, made, pools};
use super::*;

/// Numbers that now and then fit: small ones, the first addresses and streams, and wild ones.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..5,
        3 => (1u64..12).prop_map(|number| number << 32),
        2 => (0u64..3).prop_map(|stream| u64::from(StreamId::FIRST) + stream),
        1 => (0u64..3).prop_map(|pool| u64::from(PoolId::FIRST) + pool),
        1 => 0u64..LIMIT + 64,
        1 => any::<u64>(),
    ]
}

/// A call's fields, of which some are replaced.
fn fields(control: &[u8], most: usize) -> impl Strategy<Value = Vec<u8>> + use<> {
    let (control, places) = (control.to_vec(), control.len().div_ceil(4).max(1));
    proptest::collection::vec((0..places, word(), any::<bool>()), 0..=most).prop_map(move |set| {
        let mut control = control.clone();
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

/// One of the calls that are well made, with other fields.
fn call() -> impl Strategy<Value = Vec<Made>> {
    let bulk = |own: Vec<u8>| prop_oneof![3 => Just(own), 1 => proptest::collection::vec(any::<u8>(), 0..600)];
    proptest::sample::select(each_call()).prop_flat_map(move |made| {
        // Most are made in the one context that is there from the beginning.
        let context = prop_oneof![6 => Just(1u32), 1 => 0u32..4];
        let parts = (0u16..2, context, fields(&made.control, 3), bulk(made.bulk));
        parts.prop_map(move |(flags, context, control, bulk)| {
            vec![Made { opcode: made.opcode, flags, context, control, bulk }]
        })
    })
}

/// Some that belong together, as they are.
fn run() -> impl Strategy<Value = Vec<Made>> {
    let calls = each_call();
    // What ends the context comes by itself often enough.
    (0..calls.len() - 8, 2usize..8)
        .prop_map(move |(from, count)| calls[from..from + count].to_vec())
}

fn records() -> impl Strategy<Value = Vec<u8>> {
    let wild =
        (any::<u16>(), any::<u16>(), fields(&[0; 24], 6)).prop_map(|(opcode, flags, control)| {
            vec![Made { opcode, flags, context: 1, control, bulk: Vec::new() }]
        });
    let some = prop_oneof![40 => call(), 8 => run(), 1 => wild];
    proptest::collection::vec(some, 0..60).prop_map(|records| bytes(&records.concat()))
}

fn bytes(calls: &[Made]) -> Vec<u8> {
    calls.iter().flat_map(Made::record).collect()
}

/// An input whose writer's position is honest.
fn input(calls: &[Made]) -> Vec<u8> {
    [&[0; 8][..], &bytes(calls)].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn records_of_any_kind_do_no_harm(
        records in records(),
        spoilt in prop_oneof![9 => Just(0u64), 1 => any::<u64>(), 1 => 0u64..64],
        refuse_each in prop_oneof![1 => Just(0usize), 1 => 2usize..40],
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut input = [&spoilt.to_le_bytes()[..], &bytes(&beginning()), &records].concat();
        for (at, with) in flips {
            let at = at.index(input.len());
            input[at] ^= with;
        }
        ring(&lease().expect("a lease"), &input, refuse_each);
    }

    #[test]
    fn bytes_of_any_kind_do_no_harm(input in proptest::collection::vec(any::<u8>(), 0..2000)) {
        ring(&lease().expect("a lease"), &input, 0);
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/ring")
}

/// All calls, and each of them is done: else the properties above mean nothing for it.
#[test]
fn each_call_that_is_well_made_is_done() {
    let calls = each_call();
    let made: HashSet<u16> = calls.iter().map(|made| made.opcode).collect();
    let missing = Opcode::ALL.iter().filter(|opcode| !made.contains(&(**opcode as u16)));
    assert_eq!(missing.collect::<Vec<&Opcode>>(), Vec::<&Opcode>::new(), "add them to `calls`");
    let outcome = ring(&lease().expect("a lease"), &input(&calls), 0);
    assert_eq!(outcome, Outcome { calls: calls.len(), errors: Vec::new() });
}

#[test]
fn what_fuzzing_found_or_began_with_does_no_harm() {
    let lease = lease().expect("a lease");
    for file in std::fs::read_dir(corpus()).expect("the corpus is checked in") {
        ring(&lease, &std::fs::read(file.expect("an entry").path()).expect("readable"), 0);
    }
    // The calls' numbers and fields change; then the corpus has to be written anew.
    let calls = std::fs::read(corpus().join("each-call")).expect("readable");
    assert!(calls == input(&each_call()), "run the ignored test `write_the_corpus_anew`");
}

/// What is drawn is not refused at once: most of it are calls that are done.
#[test]
fn records_that_are_drawn_are_calls() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let lease = lease().expect("a lease");
    let mut draw = || records().new_tree(&mut runner).expect("a value").current();
    let drawn = |_| ring(&lease, &[input(&beginning()), draw()].concat(), 0);
    let drawn: Vec<Outcome> = (0..50).map(drawn).collect();
    let calls: usize = drawn.iter().map(|outcome| outcome.calls).sum();
    let refused: usize = drawn.iter().map(|outcome| outcome.errors.len()).sum();
    assert!(calls > 500 && refused < calls * 3 / 4, "{calls} calls in 50 draws, {refused} refused");
}

/// What came from a pool that is gone is no memory of another one with its number.
#[test]
fn a_pool_with_the_number_of_an_earlier_one_has_nothing_of_it() {
    let pool = PoolId(PoolId::FIRST);
    let stream = StreamId(StreamId::FIRST);
    let again = [
        made(&PoolDestroy { pool }),
        made(&PoolCreate { pool, device: 0, most: 0 }),
        made(&PoolAllocate { pool, bytes: 512, stream }),
        made(&MemoryFreeAsync { pointer: address(2), stream }),
        made(&MemoryFreeAsync { pointer: address(3), stream }),
        made(&PoolTrim { pool, keep: 0 }),
    ];
    let calls = [beginning(), pools()[..2].to_vec(), again.to_vec()].concat();
    let outcome = ring(&lease().expect("a lease"), &input(&calls), 0);
    assert_eq!(outcome, Outcome { calls: calls.len(), errors: Vec::new() });
}

/// What is refused of some calls behind the beginning, all of which are taken for calls.
fn refused(calls: &[Made]) -> Vec<(u16, CuResult)> {
    let calls = [beginning(), calls.to_vec()].concat();
    let outcome = ring(&lease().expect("a lease"), &input(&calls), 0);
    assert_eq!(outcome.calls, calls.len());
    outcome.errors
}

fn module(number: u32) -> Vec<Made> {
    let (module, settings) = (ModuleId(number), Vec::new());
    let load = ModuleLoad { module, settings, info_log: 0, error_log: 0 };
    vec![Made { bulk: vec![0x21; 48], ..made(&ModuleData {}) }, made(&load)]
}

/// Of each kind as many as the caps say, of which the beginning has one of some, and one more.
#[test]
fn one_more_than_the_caps_say_is_refused() {
    let function = |number| {
        let (function, name) = (FunctionId(number), "kernel".to_owned());
        made(&ModuleFunction { module: ModuleId(1), function, name })
    };
    let context = |number| {
        let create = ContextCreate { context: ContextId(number), device: 0, flags: 0 };
        Made { context: 0, ..made(&create) }
    };
    let stream = |number| {
        made(&StreamCreate { stream: StreamId(StreamId::FIRST + number), flags: 0, priority: 0 })
    };
    let event = |number| made(&EventCreate { event: EventId(number), flags: 0 });
    let pool =
        |number| made(&PoolCreate { pool: PoolId(PoolId::FIRST + number), device: 0, most: 0 });
    let pinned = |number, bytes| made(&HostAllocate { memory: HostId(number), bytes });
    let physical =
        |number| made(&PhysicalCreate { memory: PhysicalId(number), device: 0, bytes: 512 });
    let each: [(&str, Vec<Made>); 10] = [
        ("contexts", [2, 3, 4].map(context).to_vec()),
        ("modules", [1, 2, 3, 4].map(module).concat()),
        ("functions", [module(1), [1, 2, 3, 4].map(function).to_vec()].concat()),
        ("streams", [1, 2, 3].map(stream).to_vec()),
        ("events", [1, 2, 3, 4].map(event).to_vec()),
        ("allocations", vec![made(&MemoryAllocate { bytes: 16 }); 3]),
        ("physical memory", [1, 2, 3, 4].map(physical).to_vec()),
        ("pools", [0, 1, 2, 3].map(pool).to_vec()),
        ("pinned pieces", [1, 2, 3].map(|number| pinned(number, 16)).to_vec()),
        ("pinned bytes", vec![pinned(1, 4096), pinned(2, 2 * 4096 + 1)]),
    ];
    for (kind, calls) in each {
        let last = calls.last().expect("some").opcode;
        assert_eq!(refused(&calls), [(last, CuResult::OUT_OF_MEMORY)], "{kind}");
        assert_eq!(refused(&calls[..calls.len() - 1]), [], "{kind}");
    }
}

/// What is of one context is not used in another one.
#[test]
fn what_is_of_another_context_is_refused() {
    let (function, event, default) = (FunctionId(1), EventId(1), StreamId::DEFAULT);
    let named = ModuleFunction { module: ModuleId(1), function, name: "kernel".to_owned() };
    let second = ContextCreate { context: ContextId(2), device: 0, flags: 0 };
    let made_before = [
        module(1),
        vec![
            made(&named),
            made(&EventCreate { event, flags: 0 }),
            Made { context: 0, ..made(&second) },
        ],
    ]
    .concat();
    let launch = |stream| Launch {
        function,
        stream,
        grid: [1; 3],
        block: [1; 3],
        shared: 0,
        settings: Vec::new(),
        arguments: vec![0; 8],
    };
    let stream = StreamId(StreamId::FIRST);
    let (target, width, count, pitch, rows) = (address(1), 4, 1, 0, 1);
    let set = |stream| MemorySet { target, value: 0, width, count, pitch, rows, stream };
    for own in
        [made(&launch(default)), made(&set(stream)), made(&EventRecord { event, stream: default })]
    {
        let other = Made { context: 2, ..own.clone() };
        let opcode = other.opcode;
        let calls = [made_before.clone(), vec![own, other]].concat();
        assert_eq!(refused(&calls), [(opcode, CuResult::INVALID_HANDLE)]);
    }
}

/// A record with more bulk bytes than the lease's records have ends its session.
#[test]
fn a_record_that_is_longer_than_the_lease_allows_is_none() {
    let most = caps().record_bytes.get();
    let copy = CopyToDevice { target: address(1), stream: StreamId::DEFAULT, wait: true };
    for (bytes, is_taken) in [(most, true), (most + 1, false)] {
        let long = Made { bulk: vec![0; bytes], ..made(&copy) };
        let calls = [beginning(), vec![long]].concat();
        let outcome = ring(&lease().expect("a lease"), &input(&calls), 0);
        // It is more than was allocated in any case.
        let error = (Opcode::CopyToDevice as u16, CuResult::INVALID_VALUE);
        let errors = vec![error; usize::from(is_taken)];
        let taken = calls.len() - usize::from(!is_taken);
        assert_eq!(outcome, Outcome { calls: taken, errors }, "{bytes}");
    }
}

/// Whichever request the driver refuses: what it has given out stays charged, and comes back.
#[test]
fn what_the_driver_refuses_is_undone() {
    let lease = lease().expect("a lease");
    let again = [pools()[..5].to_vec(), vec![pools()[1].clone()]].concat();
    let again = input(&[beginning(), again].concat());
    for refuse_each in 1..200 {
        ring(&lease, &input(&each_call()), refuse_each);
        ring(&lease, &again, refuse_each);
    }
}

/// The driver that watches would see it: what must not be asked is found out.
#[test]
fn the_driver_that_watches_sees_a_step_too_far() {
    arena(|arena| *arena = Arena::default());
    let driver = watching::driver();
    let none = std::ptr::null_mut();
    let wrong = || arena(|arena| arena.wrong.take()).unwrap_or_default();
    let context = arena(|arena| arena.make(Kind::Context, 0));
    let address = arena(|arena| {
        arena.current = context;
        arena.place(16, context)
    });
    // SAFETY: no pointers but those that the driver only looks at.
    unsafe {
        assert!((driver.set_32)(address, 0, 4, none).is_success() && wrong().is_empty());
        assert!((driver.set_32)(address, 0, 5, none).is_success());
        assert!(wrong().contains("20 bytes"));
        assert!((driver.set_rows_8)(address, 8, 0, 8, 2, none).is_success() && wrong().is_empty());
        assert!((driver.set_rows_8)(address, 8, 0, 8, 3, none).is_success());
        assert!(wrong().contains("24 bytes"));
        let mut at = 0;
        assert!((driver.address_reserve)(&raw mut at, 64, 0, 0, 0).is_success());
        assert!((driver.physical_map)(at, 32, 0, 1, 0).is_success());
        assert!(wrong().contains("a mapping"));
        let memory = arena(|arena| arena.make_memory(32));
        assert!((driver.physical_map)(at, 32, 0, memory, 0).is_success() && wrong().is_empty());
        assert!((driver.set_8)(at, 0, 32, none).is_success());
        assert!(wrong().contains("32 bytes"), "nobody may write there yet");
        assert!((driver.physical_unmap)(at, 16).is_success());
        assert!(wrong().contains("no mappings"));
        assert!(
            (driver.stream_synchronize)(std::ptr::without_provenance_mut(context)).is_success()
        );
        assert!(wrong().contains("Stream"));
    }
    assert!(arena(|arena| arena.left()).is_some());
}

/// Each call once, well made, some of what is drawn, and a position that is none.
#[test]
#[ignore = "writes the corpus that is checked in"]
fn write_the_corpus_anew() {
    std::fs::create_dir_all(corpus()).expect("made");
    let write = |name: &str, input: &[u8]| {
        std::fs::write(corpus().join(name), input).expect("written");
    };
    write("each-call", &input(&each_call()));
    write("spoilt-head", &[&(!0u64).to_le_bytes()[..], &bytes(&beginning())].concat());
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let lease = lease().expect("a lease");
    let mut draw = || records().new_tree(&mut runner).expect("a value").current();
    let drawn = std::iter::repeat_with(|| [input(&beginning()), draw()].concat());
    let long = drawn.filter(|input| ring(&lease, input, 0).calls > 40).take(6);
    for (number, input) in long.enumerate() {
        write(&format!("records-{number}"), &input);
    }
}
