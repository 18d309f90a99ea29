//! The store and its reports through the public interface.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use gpuzone_core::{
        ComputeShare, GpuBacking, GpuUuid, Grant, LeaseId, MemoryBytes, TenantId, Timestamp,
        UsageCounters, ZoneId,
    };
    use gpuzone_ledger::{By, Filter, GrantRecord, LeaseRecord, Ledger, OpenError, Usage};
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("ledger.db")
        }

        fn open(&self) -> Ledger {
            Ledger::open(&self.path()).unwrap()
        }
    }

    fn lease(n: u128) -> LeaseId {
        LeaseId::from_uuid(uuid::Uuid::from_u128(n))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanoseconds(seconds * SECOND)
    }

    fn record(id: LeaseId, tenant: &str, program: &str, start: Timestamp) -> LeaseRecord {
        LeaseRecord {
            id,
            tenant: tenant.parse().unwrap(),
            zone: ZoneId::from_uuid(uuid::Uuid::from_u128(7)),
            program: program.to_owned(),
            grants: vec![GrantRecord {
                grant: Grant {
                    gpu: GpuUuid::from_bytes([1; 16]),
                    memory: MemoryBytes::gib(4),
                    share: ComputeShare::new(50).unwrap(),
                },
                gpu_index: 0,
                gpu_name: "Simulated".into(),
                backing: GpuBacking::Simulated,
            }],
            start,
        }
    }

    fn used(launches: u64) -> UsageCounters {
        UsageCounters {
            launches,
            busy_nanoseconds: launches * 1000,
            bytes_to_device: launches * 7,
            used_mib_milliseconds: launches * 10,
            peak_used: MemoryBytes::mib(launches),
            ..Default::default()
        }
    }

    fn none() -> BTreeMap<String, u64> {
        BTreeMap::new()
    }

    fn everything(ledger: &Ledger) -> Usage {
        ledger.report(&Filter::default()).unwrap().total().usage
    }

    #[test]
    fn a_lease_is_billed_once_whatever_is_repeated() {
        let place = Place::new();
        let mut ledger = place.open();
        let begun = record(lease(1), "acme", "train", at(10));
        ledger.begin_lease(&begun).unwrap();
        ledger.begin_lease(&begun).unwrap();
        let refused = BTreeMap::from([("cuFoo".to_owned(), 2)]);
        let counters = UsageCounters { refused_calls: 2, ..used(3) };
        ledger.record(lease(1), at(20), &counters, &refused).unwrap();
        ledger.record(lease(1), at(20), &counters, &refused).unwrap();
        assert_eq!(ledger.open_leases().unwrap(), [(lease(1), at(20))]);
        ledger.end_lease(lease(1), at(30), "holder ended").unwrap();
        ledger.end_lease(lease(1), at(99), "again").unwrap();
        assert_eq!(ledger.open_leases().unwrap(), []);

        drop(ledger);
        let report =
            Ledger::open_read_only(&place.path()).unwrap().report(&Filter::default()).unwrap();
        let row = &report.leases[0];
        assert_eq!(row.end, Some(at(30)));
        assert_eq!(row.end_reason.as_deref(), Some("holder ended"));
        assert_eq!(row.refused_by_name, BTreeMap::from([("cuFoo".to_owned(), 2)]));
        assert_eq!(row.usage.launches, 3);
        assert_eq!(row.usage.lease_nanoseconds, u128::from(20 * SECOND));
        assert_eq!(row.usage.reserved_byte_seconds, 20 * (4 << 30));
        assert_eq!(row.usage.reserved_gpu_nanoseconds, u128::from(10 * SECOND));
        assert_eq!(row.usage.peak_used, MemoryBytes::mib(3));
    }

    #[test]
    fn a_clock_that_goes_backwards_and_a_late_record_lose_and_double_nothing() {
        let place = Place::new();
        let mut ledger = place.open();
        ledger.begin_lease(&record(lease(1), "acme", "train", at(100))).unwrap();
        // Before any time has passed, and from before the beginning.
        ledger.record(lease(1), at(50), &used(2), &none()).unwrap();
        ledger.record(lease(1), at(110), &used(5), &none()).unwrap();
        ledger.record(lease(1), at(105), &used(6), &none()).unwrap();
        // A counter that falls back is not counted again when it returns.
        ledger.record(lease(1), at(111), &used(1), &none()).unwrap();
        ledger.record(lease(1), at(112), &used(7), &none()).unwrap();
        ledger.end_lease(lease(1), at(90), "clock set back").unwrap();
        ledger.record(lease(1), at(200), &used(9), &none()).unwrap();
        let usage = everything(&ledger);
        assert_eq!(usage.launches, 9);
        assert_eq!(usage.busy_nanoseconds, 9000);
        assert_eq!(usage.lease_nanoseconds, u128::from(12 * SECOND));
    }

    #[test]
    fn huge_counters_are_capped_and_still_add_up() {
        let place = Place::new();
        let mut ledger = place.open();
        for n in 1..=3 {
            ledger.begin_lease(&record(lease(n), "acme", "train", at(1))).unwrap();
            let huge = UsageCounters { launches: u64::MAX, ..Default::default() };
            ledger.record(lease(n), at(2), &huge, &none()).unwrap();
            ledger.record(lease(n), at(3), &huge, &none()).unwrap();
        }
        assert_eq!(everything(&ledger).launches, 3 * u128::from(MemoryBytes::MAX.get()));
    }

    #[test]
    fn usage_of_a_lease_nobody_began_is_refused() {
        let mut ledger = Place::new().open();
        let error = ledger.record(lease(9), at(1), &used(1), &none()).unwrap_err();
        assert!(error.to_string().contains("lease-00000000000000000000000000000009"), "{error}");
        assert!(ledger.end_lease(lease(9), at(1), "x").is_err());
    }

    #[test]
    fn a_report_can_be_of_one_tenant_and_a_time() {
        let place = Place::new();
        let mut ledger = place.open();
        let acme: TenantId = "acme".parse().unwrap();
        for (n, tenant) in [(1, "acme"), (2, "globex")] {
            ledger.begin_lease(&record(lease(n), tenant, "train", at(100))).unwrap();
            ledger.record(lease(n), at(200), &used(100), &none()).unwrap();
        }
        ledger.refusal(&acme, at(150), "quota", "too much").unwrap();
        ledger.refusal(&"initech".parse().unwrap(), at(150), "quota", "too much").unwrap();
        let filter = Filter { tenant: Some(acme), from: Some(at(125)), to: Some(at(150)) };
        let report = ledger.report(&filter).unwrap();
        assert_eq!((report.tenants.len(), report.leases.len()), (1, 1));
        assert_eq!(report.total().usage.launches, 25);
        assert_eq!(report.total().usage.refused_leases, 0);
        let all = ledger.report(&Filter::default()).unwrap();
        assert_eq!(all.tenants.len(), 3);
        assert_eq!(all.total().usage.refused_leases, 2);
    }

    #[test]
    fn each_format_says_what_is_simulated_and_disarms_names() {
        let place = Place::new();
        let mut ledger = place.open();
        ledger.begin_lease(&record(lease(1), "acme", "=HYPERLINK(\"x\")\u{1b}[2J", at(1))).unwrap();
        ledger.record(lease(1), at(3), &used(4), &none()).unwrap();
        let report = ledger.report(&Filter::default()).unwrap();
        for by in [By::Tenant, By::Lease] {
            let table = report.table(by);
            assert!(table.contains("Simulated GPUs"), "{table}");
            assert!(!table.contains('\u{1b}'), "{table:?}");
            let csv = report.csv(by).unwrap();
            assert!(csv.lines().nth(1).is_some_and(|row| row.contains(",simulated,")), "{csv}");
            let json: serde_json::Value = serde_json::from_str(&report.json(by).unwrap()).unwrap();
            assert_eq!(json["includes_simulated"], true);
            assert_eq!(json["rows"][0]["backing"], "simulated");
            assert_eq!(json["rows"][0]["launches"], 4);
            assert_eq!(json["total"]["reserved_byte_seconds"], 2 * (4_u64 << 30));
        }
        let csv = report.csv(By::Lease).unwrap();
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let columns = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        let program = columns.iter().position(|name| name == "program").unwrap();
        assert_eq!(&row[program], "'=HYPERLINK(\"x\")\u{1b}[2J");
    }

    #[test]
    fn a_table_is_for_people() {
        let place = Place::new();
        let mut ledger = place.open();
        for (n, tenant) in [(1, "acme"), (2, "acme"), (3, "globex")] {
            ledger.begin_lease(&record(lease(n), tenant, "train", at(100))).unwrap();
            ledger.record(lease(n), at(1900), &used(100_000), &none()).unwrap();
        }
        ledger.refusal(&"acme".parse().unwrap(), at(150), "quota", "too much").unwrap();
        let table = ledger.report(&Filter::default()).unwrap().table(By::Tenant);
        let expected = "\
 TENANT  GPUS       LEASES         TIME  GPU-HOURS  GIB-HOURS  MEAN USED  PEAK USED  GPU BUSY  LAUNCHES     COPIED  REFUSED*
 acme    simulated       2   1 h 00 min     0.5000     4.0000  568.9 KiB   97.7 GiB    0.20 s    200000    1.3 MiB     0/0/1
 globex  simulated       1  30 min 00 s     0.2500     2.0000  568.9 KiB   97.7 GiB    0.10 s    100000  683.6 KiB     0/0/0
 total   simulated       3   1 h 30 min     0.7500     6.0000  568.9 KiB   97.7 GiB    0.30 s    300000    2.0 MiB     0/0/1
* refused allocations / unsupported calls / leases
Simulated GPUs: the numbers above that are marked 'simulated' are not of real hardware.
";
        assert_eq!(table.trim_start(), expected.trim_start());
    }

    #[test]
    fn what_is_no_ledger_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path, check: fn(&OpenError) -> bool| {
            let before = std::fs::read(path).ok();
            for error in
                [Ledger::open(path).unwrap_err(), Ledger::open_read_only(path).unwrap_err()]
            {
                assert!(check(&error), "{error:?}");
            }
            assert_eq!(std::fs::read(path).ok(), before);
        };
        let text = folder.path().join("text");
        std::fs::write(&text, "not a database").unwrap();
        refused(&text, |error| matches!(error, OpenError::NotALedger(_)));

        let foreign = folder.path().join("foreign.db");
        let database = rusqlite::Connection::open(&foreign).unwrap();
        database.execute_batch("CREATE TABLE mine (x)").unwrap();
        drop(database);
        refused(&foreign, |error| matches!(error, OpenError::NotALedger(_)));

        let newer = folder.path().join("newer.db");
        drop(Ledger::open(&newer).unwrap());
        let database = rusqlite::Connection::open(&newer).unwrap();
        database.pragma_update(None, "user_version", 3).unwrap();
        drop(database);
        refused(&newer, |error| matches!(error, OpenError::Newer { found: 3, known: 2, .. }));

        // One of the version before gets what it lacks, and is read as it is until then.
        let older = folder.path().join("older.db");
        drop(Ledger::open(&older).unwrap());
        let database = rusqlite::Connection::open(&older).unwrap();
        database.execute_batch("DROP TABLE audit_head; PRAGMA user_version = 1").unwrap();
        drop(database);
        assert_eq!(Ledger::open_read_only(&older).unwrap().audit_head().unwrap(), None);
        let mut ledger = Ledger::open(&older).unwrap();
        ledger.set_audit_head(&gpuzone_ledger::Head::START).unwrap();
        assert_eq!(ledger.audit_head().unwrap(), Some(gpuzone_ledger::Head::START));

        let damaged = folder.path().join("damaged.db");
        std::fs::write(&damaged, b"SQLite format 3\0 and then nonsense").unwrap();
        refused(&damaged, |error| {
            matches!(error, OpenError::Database { .. } | OpenError::NotALedger(_))
        });

        let missing = folder.path().join("missing.db");
        assert!(matches!(Ledger::open_read_only(&missing), Err(OpenError::Missing(_))));
        assert!(!missing.exists());
        assert!(matches!(
            Ledger::open(&folder.path().join("no/such/folder.db")),
            Err(OpenError::Database { .. })
        ));
    }

    #[test]
    fn a_reader_sees_what_a_writer_at_work_has_committed() {
        let place = Place::new();
        let mut writer = place.open();
        writer.begin_lease(&record(lease(1), "acme", "train", at(1))).unwrap();
        let reader = Ledger::open_read_only(&place.path()).unwrap();
        writer.record(lease(1), at(2), &used(1), &none()).unwrap();
        assert_eq!(everything(&reader).launches, 1);
        assert!(
            Ledger::open_read_only(&place.path())
                .unwrap()
                .refusal(&"acme".parse().unwrap(), at(1), "quota", "no")
                .is_err()
        );
    }

    /// Something that happens to one of three leases.
    #[derive(Clone, Debug)]
    enum Step {
        Record { lease: u128, at: u64, launches: u64 },
        End { lease: u128, at: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let record = (0u128..3, 0u64..100, 0u64..50)
            .prop_map(|(lease, at, launches)| Step::Record { lease, at, launches });
        let end = (0u128..3, 0u64..100).prop_map(|(lease, at)| Step::End { lease, at });
        prop_oneof![8 => record, 1 => end]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn rows_add_up_to_totals_and_adjoining_reports_to_the_whole(
            steps in proptest::collection::vec(step(), 0..40),
            mut cuts in proptest::collection::vec(0u64..110 * SECOND, 0..4),
        ) {
            let place = Place::new();
            let mut ledger = place.open();
            let mut largest = [0; 3];
            for n in 0..3 {
                let tenant = ["acme", "globex", "acme"][usize::try_from(n).unwrap()];
                ledger.begin_lease(&record(lease(n), tenant, "p", at(u64::try_from(n).unwrap()))).unwrap();
            }
            for step in steps {
                match step {
                    Step::Record { lease: n, at: when, launches } => {
                        ledger.record(lease(n), at(when), &used(launches), &none()).unwrap();
                        largest[usize::try_from(n).unwrap()] = launches.max(largest[usize::try_from(n).unwrap()]);
                    }
                    Step::End { lease: n, at: when } => {
                        ledger.end_lease(lease(n), at(when), "end").unwrap();
                    }
                }
            }
            let report = ledger.report(&Filter::default()).unwrap();
            let whole = report.total().usage;
            let of_leases = report.leases.iter().fold(Usage::default(), |sum, row| sum.plus(&row.usage));
            prop_assert_eq!(whole, of_leases);
            prop_assert_eq!(whole.launches, largest.iter().map(|n| u128::from(*n)).sum::<u128>());
            prop_assert_eq!(whole.used_mib_milliseconds, whole.launches * 10);

            cuts.sort_unstable();
            let mut edges = vec![None];
            edges.extend(cuts.into_iter().map(|cut| Some(Timestamp::from_nanoseconds(cut))));
            edges.push(None);
            let mut sum = Usage::default();
            for pair in edges.windows(2) {
                let filter = Filter { tenant: None, from: pair[0], to: pair[1] };
                sum = sum.plus(&ledger.report(&filter).unwrap().total().usage);
            }
            prop_assert_eq!(sum.lease_nanoseconds, whole.lease_nanoseconds);
            prop_assert_eq!(sum.launches, whole.launches);
            prop_assert_eq!(sum.busy_nanoseconds, whole.busy_nanoseconds);
            prop_assert_eq!(sum.bytes_to_device, whole.bytes_to_device);
        }
    }
}
