//! A device between two tenants, with one that misbehaves on request: a GPU behind vfio-user.
#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;

    use gpuzone_core::devices::{Condemned, Expected, Reset, ResetMethod, TurnoverTerms};
    use gpuzone_hw::turnover::{Target, TurnoverRecord, turn_over};
    use gpuzone_sim_vfio::{FakeGpu, Misbehaviour, registers};
    use rustix::event::{EventfdFlags, eventfd};
    use tempfile::TempDir;
    use vfio_user::Client;

    const MEMORY: usize = 1 << 20;
    const REGISTERS_BAR: u32 = 0;
    const MEMORY_BAR: u32 = 1;
    const CONFIGURATION: u32 = 7;

    struct Device {
        client: Client,
        _held: Arc<()>,
    }

    fn wrong(error: vfio_user::Error) -> io::Error {
        io::Error::other(error.to_string())
    }

    impl Target for Device {
        fn length(&self) -> u64 {
            self.client.region(MEMORY_BAR).map_or(0, |region| region.size)
        }
        fn read(&mut self, at: u64) -> io::Result<u64> {
            let mut word = [0; 8];
            self.client.region_read(MEMORY_BAR, at, &mut word).map_err(wrong)?;
            Ok(u64::from_le_bytes(word))
        }
        fn write(&mut self, at: u64, word: u64) -> io::Result<()> {
            self.client.region_write(MEMORY_BAR, at, &word.to_le_bytes()).map_err(wrong)
        }
        fn reset(&mut self, _: Reset) -> io::Result<()> {
            self.client.reset().map_err(wrong)
        }
        fn answers(&mut self) -> io::Result<bool> {
            let mut id = [0; 4];
            self.client.region_read(CONFIGURATION, 0, &mut id).map_err(wrong)?;
            Ok(id != [0xff; 4])
        }
    }

    fn served(so: Misbehaviour) -> (TempDir, FakeGpu) {
        let folder = tempfile::tempdir().unwrap();
        let gpu = FakeGpu::serve(&folder.path().join("gpu.sock"), MEMORY, so).unwrap();
        (folder, gpu)
    }

    fn client(gpu: &FakeGpu) -> Client {
        Client::new(gpu.socket()).unwrap()
    }

    /// Long enough for a busy machine where the device behaves.
    fn patient() -> TurnoverTerms {
        TurnoverTerms::default()
    }

    /// For those that never end: waiting longer would show nothing more.
    fn hasty() -> TurnoverTerms {
        TurnoverTerms { reset_within: 300_000_000, answer_within: 300_000_000, ..patient() }
    }

    fn turned(gpu: &FakeGpu, terms: TurnoverTerms) -> TurnoverRecord {
        let reset = Reset::Function(ResetMethod::Bus);
        let (device, held) = ("0000:01:00.0".parse().unwrap(), Arc::new(()));
        let target = Device { client: client(gpu), _held: Arc::clone(&held) };
        let record = turn_over(device, target, reset, terms, 42);
        // Whoever comes next can have it, but for one that nobody gets back.
        let hangs = matches!(record.condemned, Some(Condemned::ResetHangs { .. }));
        assert_eq!(Arc::strong_count(&held) == 1, !hangs, "{record:?}");
        record
    }

    fn dirty(client: &mut Client) {
        client.region_write(MEMORY_BAR, 0, &vec![0xab; MEMORY / 2]).unwrap();
        client.region_write(MEMORY_BAR, MEMORY as u64 / 2, &vec![0xab; MEMORY / 2]).unwrap();
    }

    #[test]
    fn one_that_behaves_goes_to_the_next_tenant_and_it_is_on_record() {
        let (_folder, gpu) = served(Misbehaviour::None);
        dirty(&mut client(&gpu));
        let record = turned(&gpu, TurnoverTerms { expected: Expected::Zeros, ..patient() });
        assert_eq!(record.condemned, None, "{record:?}");
        assert_eq!((record.seen_bytes, record.places), (MEMORY as u64, 256));
        assert!(record.sentence().contains("showed at none of 256 places"), "{record:?}");
        let mut next = client(&gpu);
        let mut memory = vec![1; MEMORY / 2];
        next.region_read(MEMORY_BAR, 0, &mut memory).unwrap();
        assert!(memory.iter().all(|byte| *byte == 0));
        let mut resets = [0; 8];
        next.region_read(REGISTERS_BAR, registers::RESETS, &mut resets).unwrap();
        assert_eq!(u64::from_le_bytes(resets), 1);
    }

    #[test]
    fn one_that_answers_late_is_waited_for() {
        let (_folder, gpu) = served(Misbehaviour::AnswersLate(3));
        assert_eq!(turned(&gpu, patient()).condemned, None);
    }

    #[test]
    fn one_that_misbehaves_is_caught_each_time() {
        let hangs = Misbehaviour::HangsOnReset;
        type Caught = fn(&Condemned) -> bool;
        let cases: [(Misbehaviour, TurnoverTerms, Caught); 8] = [
            (hangs, hasty(), |why| matches!(why, Condemned::ResetHangs { .. })),
            (Misbehaviour::StaysSilent, hasty(), |why| matches!(why, Condemned::Silent { .. })),
            (Misbehaviour::KeepsMemory, patient(), |why| {
                matches!(why, Condemned::Kept { place: 0 })
            }),
            (
                Misbehaviour::KeepsMemoryFrom(MEMORY as u64 - 8),
                patient(),
                |why| matches!(why, Condemned::Kept { place } if *place == MEMORY as u64 - 8),
            ),
            (
                Misbehaviour::KeepsMemoryFrom(MEMORY as u64 / 2),
                patient(),
                |why| matches!(why, Condemned::Kept { place } if *place >= MEMORY as u64 / 2),
            ),
            // It reads as ones even where the configuration is asked, so it never answers.
            (Misbehaviour::Vanishes, hasty(), |why| matches!(why, Condemned::Silent { .. })),
            (Misbehaviour::Gone, patient(), |why| matches!(why, Condemned::Vanished)),
            (Misbehaviour::Forgets, patient(), |why| matches!(why, Condemned::Unmarked { .. })),
        ];
        for (so, terms, expected) in cases {
            let (_folder, gpu) = served(so);
            let record = turned(&gpu, terms);
            let why = record.condemned.as_ref().unwrap_or_else(|| panic!("{so:?} was not caught"));
            assert!(expected(why), "{so:?}: {why}");
            assert!(record.sentence().contains("is in quarantine"), "{}", record.sentence());
        }
    }

    #[test]
    fn one_whose_server_dies_is_caught() {
        let (_folder, gpu) = served(Misbehaviour::None);
        let client = client(&gpu);
        client.shutdown().unwrap();
        let reset = Reset::Function(ResetMethod::Bus);
        let device = "0000:01:00.0".parse().unwrap();
        let record =
            turn_over(device, Device { client, _held: Arc::default() }, reset, patient(), 42);
        assert!(matches!(record.condemned, Some(Condemned::Failed { .. })), "{record:?}");
        assert_eq!(gpu.probe().resets(), 0);
    }

    #[test]
    fn its_registers_interrupt_dma_and_scrub_are_a_devices() {
        let (_folder, gpu) = served(Misbehaviour::None);
        let mut client = client(&gpu);
        let read = |client: &mut Client, at: u64| {
            let mut word = [0; 8];
            client.region_read(REGISTERS_BAR, at, &mut word).unwrap();
            u64::from_le_bytes(word)
        };
        let write = |client: &mut Client, at: u64, value: u64| {
            client.region_write(REGISTERS_BAR, at, &value.to_le_bytes()).unwrap();
        };
        assert_eq!(read(&mut client, registers::ID), registers::IDENTITY);
        // An interrupt arrives as often as it was raised.
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        client.set_irqs(1, 0b10_0100, 0, 1, &[event.as_raw_fd()]).unwrap();
        for _ in 0..3 {
            write(&mut client, registers::RING, 1);
        }
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);

        // DMA reaches what is mapped, and nothing else, nor after it was unmapped.
        dirty(&mut client);
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        client.dma_map(0, 0x10_0000, 8192, file.as_raw_fd()).unwrap();
        let copied = |client: &mut Client, address: u64, length: u64| {
            write(client, registers::DMA_ADDRESS, address);
            write(client, registers::DMA_COPY, length);
            read(client, registers::DMA_COPY)
        };
        assert_eq!(copied(&mut client, 0x10_1000, 4096), 1);
        for (address, length) in
            [(0x10_1000, 4097), (0xf_ffff, 1), (u64::MAX, 8), (0x10_0000, u64::MAX)]
        {
            assert_eq!(copied(&mut client, address, length), 2, "{address:#x} {length:#x}");
        }
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; 4097];
        file.read_exact_at(&mut bytes, 4095).unwrap();
        assert!(bytes[0] == 0 && bytes[1..].iter().all(|byte| *byte == 0xab));
        client.dma_unmap(0x10_0000, 8192).unwrap();
        assert_eq!(copied(&mut client, 0x10_1000, 8), 2);

        // A scrub that lies is found by looking.
        write(&mut client, registers::SCRUB, 1);
        let mut word = [1; 8];
        client.region_read(MEMORY_BAR, 4096, &mut word).unwrap();
        assert_eq!((read(&mut client, registers::SCRUB), word), (1, [0; 8]));
        gpu.misbehave(Misbehaviour::ScrubLies);
        dirty(&mut client);
        write(&mut client, registers::SCRUB, 1);
        client.region_read(MEMORY_BAR, 4096, &mut word).unwrap();
        assert_eq!((read(&mut client, registers::SCRUB), word), (1, [0xab; 8]));
    }
}
