//! A writer that is killed at any moment leaves a ledger whose numbers hold.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use gpuzone_core::{LeaseId, TenantId, Timestamp, UsageCounters, ZoneId};
    use gpuzone_ledger::{Filter, LeaseRecord, Ledger};

    const WRITER: &str = "GPUZONE_TEST_LEDGER_WRITER";

    fn lease() -> LeaseId {
        LeaseId::from_uuid(uuid::Uuid::from_u128(1))
    }

    /// Step `n` is at second `n` with `n` launches: the ledger can be checked against itself.
    fn write_forever(path: &Path) {
        let mut ledger = Ledger::open(path).unwrap();
        let tenant: TenantId = "acme".parse().unwrap();
        let zone = ZoneId::from_uuid(uuid::Uuid::from_u128(2));
        let start = Timestamp::from_nanoseconds(0);
        let record =
            LeaseRecord { id: lease(), tenant, zone, program: "p".into(), grants: vec![], start };
        ledger.begin_lease(&record).unwrap();
        let last = ledger.open_leases().unwrap()[0].1.nanoseconds();
        let mut out = std::io::stdout();
        for n in last + 1.. {
            let now = Timestamp::from_nanoseconds(n);
            let used = UsageCounters { launches: n, refused_calls: n, ..Default::default() };
            let refused = BTreeMap::from([("cuFoo".to_owned(), n)]);
            ledger.record(lease(), now, &used, &refused).unwrap();
            writeln!(out, "recorded {n}").unwrap();
        }
    }

    #[test]
    fn sums_hold_after_each_kill() {
        if let Some(path) = std::env::var_os(WRITER) {
            write_forever(Path::new(&path));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let mut before = 0;
        for round in 1..=5_u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tests::sums_hold_after_each_kill", "--nocapture"])
                .env(WRITER, &path)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let told = lines.map_while(Result::ok);
            let told = told.filter_map(|line| line.strip_prefix("recorded ")?.parse::<u64>().ok());
            let seen = told.take(20 * usize::try_from(round).unwrap()).last();
            child.kill().unwrap();
            child.wait().unwrap();
            let seen = seen.expect("the writer recorded something");

            let ledger = Ledger::open(&path).unwrap();
            let recorded = ledger.open_leases().unwrap()[0].1.nanoseconds();
            assert!(recorded >= seen && seen > before, "{recorded} {seen} {before}");
            let report = ledger.report(&Filter::default()).unwrap();
            let usage = report.total().usage;
            assert_eq!(usage.launches, u128::from(recorded));
            assert_eq!(usage.lease_nanoseconds, u128::from(recorded));
            assert_eq!(report.leases[0].refused_by_name["cuFoo"], u128::from(recorded));
            before = recorded;
        }
    }
}
