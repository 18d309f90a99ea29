use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::ends::Shared;
use super::record::{ALIGN, MAX_RECORD};
use super::*;

fn region() -> Arc<Region> {
    let (file, _creator) = Region::create(RingSizes::default()).expect("created");
    Arc::new(Region::open(&file, RingSizes::default()).expect("opened"))
}

fn ends(region: &Arc<Region>) -> (Writer, Reader) {
    let spin = Spin { time: Duration::from_micros(2) };
    (
        Writer::new(region.clone(), Direction::Request, spin),
        Reader::new(region.clone(), Direction::Request, spin),
    )
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn send_all(writer: &mut Writer, sizes: &[(usize, usize)]) {
    for (number, (control, bulk)) in (0u32..).zip(sizes) {
        let control = pattern(number.into(), *control);
        let bulk = pattern(u64::from(number) + 7, *bulk);
        let header = Header::new(3, 0, number ^ 5, number);
        writer.send(header, &control, Payload::of(&bulk), &Always).expect("sent");
    }
}

fn check_all(reader: &mut Reader, sizes: &[(usize, usize)]) {
    for (number, (control, bulk)) in (0u32..).zip(sizes) {
        let got = reader.receive(None, &Always).expect("healthy").expect("a record");
        assert_eq!((got.header.sequence, got.header.context), (number, number ^ 5));
        assert_eq!(reader.control(), pattern(number.into(), *control));
        let mut bytes = Vec::new();
        // SAFETY: the record is not released yet.
        unsafe { got.bulk.append_to(&mut bytes) };
        assert_eq!(bytes, pattern(u64::from(number) + 7, *bulk));
        reader.release();
    }
}

fn sizes() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let control = prop_oneof![8 => 0usize..300, 1 => 0usize..=MAX_CONTROL];
    let bulk = prop_oneof![8 => 0usize..3000, 1 => 0usize..=MAX_BULK];
    proptest::collection::vec((control, bulk), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_goes_in_comes_out(sizes in sizes()) {
        let region = region();
        let (mut writer, mut reader) = ends(&region);
        std::thread::scope(|scope| {
            scope.spawn(|| send_all(&mut writer, &sizes));
            check_all(&mut reader, &sizes);
        });
    }

    #[test]
    fn impossible_records_and_positions_are_an_error_and_never_more(
        head: u64,
        noise: [u8; 64],
        stamped: bool,
    ) {
        let region = region();
        let (mut writer, mut reader) = ends(&region);
        let ring = region.ring(Direction::Request);
        // SAFETY: the first 64 bytes of the ring, which no reader or writer uses now.
        unsafe {
            let start = region.at(Direction::Request, 0);
            std::ptr::copy_nonoverlapping(noise.as_ptr(), start, 64);
        }
        if stamped {
            ring.stamp(0).store(ring.published(0), Ordering::Release);
        }
        ring.head().store(head, Ordering::Release);
        let timeout = Some(Duration::from_micros(1));
        while let Ok(Some(got)) = reader.receive(timeout, &Always) {
            prop_assert!(got.bulk.len() <= MAX_BULK && reader.control().len() <= MAX_CONTROL);
        }
        let record = vec![0u8; MAX_BULK];
        for _ in 0..20 {
            let header = Header::new(1, 0, 0, 0);
            if writer.send(header, &[], Payload::of(&record), &gone()).is_err() {
                break;
            }
        }
    }

    #[test]
    fn a_record_is_as_long_as_its_parts_and_no_longer_than_what_is_there(
        control in 0usize..=MAX_CONTROL,
        bulk in 0usize..=MAX_BULK,
        less in 1u64..64,
    ) {
        let header = Header::new(1, 0, 0, 0).sized(control, bulk).expect("small enough");
        let total = u64::from(header.total);
        prop_assert!(header.checked(total).is_ok());
        prop_assert_eq!(header.checked(total - less), Err(RingError::BadRecord));
        let longer = Header { total: header.total + 64, ..header };
        prop_assert_eq!(longer.checked(u64::MAX), Err(RingError::BadRecord));
    }

    #[test]
    fn any_header_is_judged(words: [u32; 8], available: u64) {
        let header: Header = bytemuck::cast(words);
        if let Ok(bulk_at) = header.checked(available) {
            let end = bulk_at as u64 + u64::from(header.bulk);
            prop_assert!(end <= u64::from(header.total) && u64::from(header.total) <= available);
            prop_assert!(header.total as usize <= MAX_RECORD);
        }
    }
}

/// Sends a record and reads it while a hostile writer changes its length again and again; then has
/// the writer change all of it. What the reader made of it, if it took it for one.
fn read_while_it_changes() -> Option<(Received, Vec<u8>, usize)> {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let header = Header::new(1, 0, 0, 0);
    writer.send(header, &[7; 16], Payload::of(&[8; 64]), &Always).expect("sent");
    let record = region.at(Direction::Request, 0);
    // SAFETY: a word of the header, which lies in the ring and is aligned.
    let length = unsafe {
        let word = record.add(std::mem::offset_of!(Header, control)).cast::<u32>();
        std::sync::atomic::AtomicU32::from_ptr(word)
    };
    let (began, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let got = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                length.store(4096, Ordering::Relaxed);
                length.store(16, Ordering::Relaxed);
                began.store(true, Ordering::Relaxed);
            }
        });
        while !began.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        let got = reader.receive(None, &Always);
        over.store(true, Ordering::Relaxed);
        got
    });
    // SAFETY: the record's bytes, which nobody else uses now.
    unsafe { record.write_bytes(0xff, 128) };
    match got {
        Ok(got) => got.map(|got| (got, reader.control().to_vec(), got.bulk.len())),
        Err(error) => {
            assert_eq!(error, RingError::BadRecord);
            None
        }
    }
}

/// The reader looks at a record once: what is checked is what is used.
#[test]
fn a_record_that_changes_while_it_is_read_is_whole_or_none() {
    let rounds = 500;
    let mut whole = 0;
    for _ in 0..rounds {
        let Some((got, control, bulk)) = read_while_it_changes() else { continue };
        assert_eq!((got.header.control, got.header.bulk, bulk), (16, 64, 64));
        assert_eq!(control, [7; 16]);
        whole += 1;
    }
    assert!(whole > 0 && whole < rounds, "{whole} of {rounds}: nothing changed meanwhile");
}

/// Bytes of a program's that are full of records for whoever comes by one lap later.
fn forged(key: u64, number: u64) -> Vec<u8> {
    let honest = Header::new(1, 0, 0, 9).sized(0, 0).expect("small");
    let mut bytes = vec![0; MAX_BULK];
    // They begin in the middle of a line.
    for at in (ALIGN / 2..MAX_BULK - ALIGN).step_by(ALIGN) {
        let header = Header { stamp: key.wrapping_add(number), ..honest };
        bytes[at..at + size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
    }
    bytes
}

/// Whether the reader takes for a record what was copied through the ring one lap ago.
fn takes_for_a_record(key: impl FnOnce(u64) -> u64) -> bool {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let capacity = region.capacity(Direction::Request);
    let key = key(region.ring(Direction::Request).published(0));
    // As many as fill the ring, of which the next one is not there.
    let records = capacity / (MAX_BULK as u64 + ALIGN as u64) + 1;
    while writer.place().position < capacity {
        let bytes = forged(key, records);
        writer.send(Header::new(2, 0, 0, 0), &[], Payload::of(&bytes), &Always).expect("sent");
        reader.receive(None, &Always).expect("healthy").expect("a record");
        reader.release();
    }
    reader.receive(Some(Duration::ZERO), &Always).expect("healthy").is_some()
}

#[test]
fn bytes_of_a_program_are_no_record_even_if_they_look_like_one() {
    assert!(!takes_for_a_record(|_| region().ring(Direction::Request).published(0)));
    // That they lie where they would have to: whoever knew the key could do it.
    assert!(takes_for_a_record(|key| key));
}

struct Gone(AtomicBool);

fn gone() -> Gone {
    Gone(AtomicBool::new(true))
}

impl Peer for Gone {
    fn is_there(&self, _slept: bool) -> bool {
        !self.0.load(Ordering::SeqCst)
    }

    fn slice(&self) -> Duration {
        Duration::from_secs(30)
    }
}

#[test]
fn a_reader_learns_that_the_peer_is_gone_but_reads_what_it_left() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    send_all(&mut writer, &[(5, 0), (0, 9)]);
    let peer = gone();
    assert!(reader.receive(None, &peer).expect("left").is_some());
    assert!(reader.receive(None, &peer).expect("left").is_some());
    assert_eq!(reader.receive(None, &peer).err(), Some(RingError::PeerGone));
    assert_eq!(reader.receive(None, &Always).err(), Some(RingError::PeerGone));
}

#[test]
fn a_sleeping_reader_is_woken_when_its_peer_goes() {
    let region = region();
    let (_writer, mut reader) = ends(&region);
    let peer = Gone(AtomicBool::new(false));
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            peer.0.store(true, Ordering::SeqCst);
            region.wake_all();
        });
        assert_eq!(reader.receive(None, &peer).err(), Some(RingError::PeerGone));
    });
    assert!(began.elapsed() < Duration::from_secs(10), "the wake-up was lost");
}

#[test]
fn a_question_is_written_over_the_last_one_and_takes_no_room() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let ask = |writer: &mut Writer, reader: &mut Reader, number: u32| {
        let header = Header::new(1, flag::REUSED, 0, number);
        let control = number.to_le_bytes().repeat(number as usize % 9);
        writer.send(header, &control, Payload::NONE, &Always).expect("sent");
        let got = reader.receive(None, &Always).expect("healthy").expect("a record");
        assert_eq!((got.header.sequence, reader.control()), (number, &control[..]));
        assert!(!reader.has_more());
    };
    // What is posted in between lies behind, and stays while it is held.
    for round in 0..40 {
        let before = writer.place();
        (0..50).for_each(|number| ask(&mut writer, &mut reader, number));
        let after = writer.place();
        assert_eq!((after.position, after.number), (before.position, before.number + 50));
        assert_eq!(after, reader.place());
        send_all(&mut writer, &[(round, MAX_BULK)]);
        let posted = reader.receive(None, &Always).expect("healthy").expect("a record");
        let ends = reader.hold();
        (0..50).for_each(|number| ask(&mut writer, &mut reader, number));
        let mut bytes = Vec::new();
        // SAFETY: the record is held.
        unsafe { posted.bulk.append_to(&mut bytes) };
        assert_eq!(bytes, pattern(7, MAX_BULK));
        reader.release_upto(ends);
    }
}

#[test]
fn a_record_with_bulk_bytes_is_not_written_over() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let header = Header::new(1, flag::REUSED, 0, 0);
    writer.send(header, &[], Payload::of(&[1]), &Always).expect("sent");
    assert_eq!(reader.receive(None, &Always).err(), Some(RingError::BadRecord));
}

#[test]
fn rings_have_possible_sizes() {
    for bytes in [2 << 20, 4 << 20, 64 << 20] {
        let sizes = RingSizes::from(RingBytes::try_from(bytes).expect("possible"));
        assert_eq!((sizes.request, sizes.reply), (bytes, bytes));
        assert!(Region::create(sizes).is_ok());
    }
    for bytes in [0, 1 << 20, 3 << 20, 128 << 20, u32::MAX] {
        let said = RingBytes::try_from(bytes).expect_err("refused").to_string();
        assert!(said.contains("2 MiB") && said.ends_with(&bytes.to_string()), "{said}");
    }
}

#[test]
fn held_records_stay_until_they_are_released_and_others_go_back_as_they_are_read() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let next =
        |reader: &mut Reader| reader.receive(None, &Always).expect("healthy").expect("a record");
    let large = [(3, MAX_BULK); 7];
    send_all(&mut writer, &large);
    assert!(!writer.has_room(3, MAX_BULK));
    let first = next(&mut reader);
    let first_ends = reader.hold();
    let second = next(&mut reader);
    next(&mut reader);
    assert!(!writer.has_room(3, MAX_BULK), "nothing was released");
    reader.release_upto(first_ends);
    assert!(writer.has_room(3, MAX_BULK));
    let mut bytes = Vec::new();
    // SAFETY: the record is not released yet.
    unsafe { second.bulk.append_to(&mut bytes) };
    assert_eq!((bytes, first.bulk.len()), (pattern(8, MAX_BULK), MAX_BULK));
    // What was released once is not released again.
    reader.release_upto(0);
    reader.release();
    next(&mut reader);
    assert!(writer.has_room(3, MAX_BULK));
    send_all(&mut writer, &[(3, MAX_BULK); 3]);
}

#[test]
fn a_full_ring_makes_the_writer_wait_and_a_silent_one_the_reader_return() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let timeout = Some(Duration::from_millis(5));
    assert!(reader.receive(timeout, &Always).expect("healthy").is_none());
    let block = vec![1u8; MAX_BULK];
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..40 {
                let header = Header::new(1, 0, 0, number);
                writer.send(header, &[], Payload::of(&block), &Always).expect("sent");
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(sent.load(Ordering::SeqCst) < 8, "4 MiB hold fewer than 8 such records");
        for number in 0..40 {
            let got = reader.receive(None, &Always).expect("healthy").expect("a record");
            assert_eq!(got.header.sequence, number);
        }
    });
}

#[test]
fn what_is_too_large_is_refused_and_harms_nothing() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let large = vec![0u8; MAX_BULK + 1];
    let header = Header::new(1, 0, 0, 0);
    let sent = writer.send(header, &[], Payload::of(&large), &Always);
    assert_eq!(sent, Err(RingError::TooLarge));
    assert!(writer.begin(header, &[], 8, &Always).expect("healthy").is_some());
    assert_eq!(writer.send(header, &[], Payload::NONE, &Always), Err(RingError::TooLarge));
    writer.abandon();
    send_all(&mut writer, &[(1, 1)]);
    check_all(&mut reader, &[(1, 1)]);
}

/// Records that are begun come in their order, each when it is finished, and the reader is never
/// waited for while it may wait for one of them.
#[test]
fn what_is_begun_is_read_when_it_is_finished() {
    let region = region();
    let (mut writer, mut reader) = ends(&region);
    let none = Some(Duration::ZERO);
    let begin = |writer: &mut Writer, number: u32| {
        let header = Header::new(1, 0, 0, number);
        let target = writer.begin(header, b"part", MAX_BULK, &Always).expect("healthy")?;
        // SAFETY: the place of so many bytes, which are nobody else's until they are finished.
        unsafe { target.write_bytes(number.to_le_bytes()[0], MAX_BULK) };
        Some(())
    };
    for lap in 0..3 {
        let first = lap * 7;
        (first..first + 7).for_each(|number| begin(&mut writer, number).expect("there is room"));
        assert!(begin(&mut writer, 99).is_none() && !writer.has_room(0, MAX_BULK));
        assert!(reader.receive(none, &Always).expect("healthy").is_none(), "none is finished");
        for number in first..first + 7 {
            writer.finish();
            let got = reader.receive(none, &Always).expect("healthy").expect("it is finished");
            assert_eq!((got.header.sequence, reader.control()), (number, &b"part"[..]));
            // SAFETY: in the ring until it is released.
            let bytes = unsafe { std::slice::from_raw_parts(got.bulk.as_ptr(), got.bulk.len()) };
            assert!(bytes == [number.to_le_bytes()[0]; MAX_BULK]);
            assert!(reader.receive(none, &Always).expect("healthy").is_none(), "only that one");
        }
    }
    // What is given up was never there.
    (0..3).for_each(|_| begin(&mut writer, 98).expect("there is room"));
    writer.abandon();
    writer.finish();
    send_all(&mut writer, &[(5, 5)]);
    check_all(&mut reader, &[(5, 5)]);
}

#[test]
fn an_unsealed_or_short_file_is_not_mapped() {
    let file = tempfile::tempfile().expect("a file");
    assert!(matches!(Region::open(&file, RingSizes::default()), Err(RegionError::Unfit)));
    let (file, _region) = Region::create(RingSizes::default()).expect("created");
    let other = RingSizes { request: 16 << 20, reply: 4 << 20 };
    assert!(matches!(Region::open(&file, other), Err(RegionError::Unfit)));
    let tiny = RingSizes { request: 4096, reply: 4096 };
    assert!(matches!(Region::create(tiny), Err(RegionError::Unfit)));
    assert!(rustix::fs::ftruncate(&file, 0).is_err(), "the seals hold");
}

#[test]
fn a_carrier_hears_the_wakes_of_the_side_that_is_away_and_no_others() {
    let (file, _region) = Region::create(RingSizes::default()).unwrap();
    // As a PCI region has to be, for it may be shown to another machine.
    assert!(rustix::fs::fstat(&file).unwrap().st_size.cast_unsigned().is_power_of_two());
    let tenants = Carrier::open(&file, Side::Tenant).unwrap();
    let workers = Carrier::open(&file, Side::Worker).unwrap();
    let heard = |carrier: &Carrier| carrier.wait(u32::MAX, Duration::ZERO);
    let before = (heard(&tenants), heard(&workers));
    // In the worker's place: its tenant, which is away, is woken.
    workers.wake_here();
    assert_eq!((heard(&tenants), heard(&workers)), (before.0 + 1, before.1));
    tenants.wake_here();
    tenants.interrupt();
    assert_eq!((heard(&tenants), heard(&workers)), (before.0 + 2, before.1 + 1));
}

/// The count is in memory that the other machine writes to.
#[test]
fn a_side_that_is_away_and_wakes_all_the_time_does_not_hide_that_the_other_is_gone() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (file, _region) = Region::create(RingSizes::default()).unwrap();
    let carrier = Carrier::open(&file, Side::Tenant).unwrap();
    let (writer, stop) = (Carrier::open(&file, Side::Worker).unwrap(), AtomicBool::new(false));
    let (looked, began) = (AtomicBool::new(false), std::time::Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                writer.wake_here();
            }
        });
        let over = || began.elapsed() > Duration::from_secs(20);
        let gone = || {
            looked.store(true, Ordering::SeqCst);
            true
        };
        carrier.carry(Duration::from_millis(1), over, gone, || true);
        stop.store(true, Ordering::SeqCst);
    });
    assert!(looked.load(Ordering::SeqCst), "nobody looked whether it is gone");
}
