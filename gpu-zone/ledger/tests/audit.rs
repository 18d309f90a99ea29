//! Whatever is done to an audit log, `verify` names it.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use gpuzone_core::Timestamp;
    use gpuzone_ledger::{
        AuditEvent, AuditKind, AuditLog, DamageKind, Expected, ExportFilter, Exporter, Head,
        Ledger, Opened, Verified, verify,
    };
    use proptest::prelude::*;

    const LINES: u64 = 12;

    fn event(number: u64) -> AuditEvent {
        AuditEvent {
            kind: if number.is_multiple_of(4) { AuditKind::Limits } else { AuditKind::Grant },
            actor: "agent".into(),
            subject: format!("lease-{number}"),
            tenant: number.is_multiple_of(2).then(|| "acme".parse().unwrap()),
            detail: serde_json::json!({ "memory_bytes": number, "text": "a\nb \"ü\"" }),
        }
    }

    fn open(path: &Path, recorded: Option<Head>) -> Opened {
        AuditLog::open(path, recorded, Timestamp::from_nanoseconds(1)).unwrap()
    }

    fn append(log: &mut AuditLog, number: u64) -> Head {
        log.append(event(number), Timestamp::from_nanoseconds(number * 1_000_000_000)).unwrap()
    }

    /// A log of [`LINES`] lines, and its head as the ledger has it.
    fn written() -> (tempfile::TempDir, PathBuf, Vec<u8>, Head) {
        static WRITTEN: OnceLock<(Vec<u8>, Head)> = OnceLock::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let (bytes, head) = WRITTEN.get_or_init(|| {
            let mut log = open(&path, None).log;
            for number in 1..=LINES {
                append(&mut log, number);
            }
            let head = log.sync().unwrap();
            (std::fs::read(&path).unwrap(), head)
        });
        std::fs::write(&path, bytes).unwrap();
        (folder, path, bytes.clone(), *head)
    }

    fn looked_at(path: &Path, recorded: Option<Head>) -> Verified {
        verify(path, &Expected { recorded, noted: None }, drop).unwrap()
    }

    /// First damaged line and what became of it, of a log with these bytes.
    fn damage(path: &Path, bytes: &[u8], head: Head) -> Option<(u64, DamageKind)> {
        std::fs::write(path, bytes).unwrap();
        looked_at(path, Some(head)).damage.map(|damage| (damage.line, damage.kind))
    }

    fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
        bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn what_was_left_alone_is_whole() {
        let (_folder, path, bytes, head) = written();
        let found = looked_at(&path, Some(head));
        assert_eq!((found.damage, found.head, found.lines), (None, head, LINES));
        let opened = open(&path, Some(head));
        assert_eq!(opened.damage, None);
        assert_eq!(opened.log.head(), head);
        assert_eq!(opened.last_limits.unwrap().seq, 12);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // Lines that are on disk before their head is recorded are what a crash leaves.
        let mut log = open(&path, Some(head)).log;
        append(&mut log, 13);
        assert_eq!(looked_at(&path, Some(head)).damage, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_changed_byte_is_seen_in_its_line(at in any::<prop::sample::Index>(), by in 1..=255_u8) {
            let (_folder, path, mut bytes, head) = written();
            let at = at.index(bytes.len());
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
            bytes[at] ^= by;
            let (found, kind) = damage(&path, &bytes, head).expect("damage");
            prop_assert_eq!(found, line);
            prop_assert!(matches!(kind, DamageKind::Altered | DamageKind::Torn), "{:?}", kind);
        }

        #[test]
        fn removed_lines_are_seen(first in 0..11_usize, count in 1..11_usize) {
            let (_folder, path, bytes, head) = written();
            let mut lines = lines(&bytes);
            // The last line stays: without it the log is cut at its end.
            let end = (first + count).min(lines.len() - 1);
            lines.drain(first..end);
            let expected = Some((first as u64 + 1, DamageKind::CutOut));
            prop_assert_eq!(damage(&path, &lines.concat(), head), expected);
        }

        #[test]
        fn a_repeated_line_is_seen(which in 0..12_usize, place in 0..=12_usize) {
            let (_folder, path, bytes, head) = written();
            let mut lines = lines(&bytes);
            let line = lines[which].clone();
            lines.insert(place, line);
            // In front of itself it stands where it belongs, and the next one does not.
            let first = if place == which { place + 1 } else { place };
            let expected = Some((first as u64 + 1, DamageKind::Reordered));
            prop_assert_eq!(damage(&path, &lines.concat(), head), expected);
        }

        #[test]
        fn swapped_lines_are_seen(one in 0..12_usize, other in 0..12_usize) {
            prop_assume!(one != other);
            let (_folder, path, bytes, head) = written();
            let mut lines = lines(&bytes);
            lines.swap(one, other);
            let expected = Some((one.min(other) as u64 + 1, DamageKind::Reordered));
            prop_assert_eq!(damage(&path, &lines.concat(), head), expected);
        }

        #[test]
        fn any_cut_at_the_end_is_seen(keep in any::<prop::sample::Index>()) {
            let (_folder, path, bytes, head) = written();
            let keep = keep.index(bytes.len());
            let (_, kind) = damage(&path, &bytes[..keep], head).expect("damage");
            let whole = keep == 0 || bytes[keep - 1] == b'\n';
            let expected = if whole { DamageKind::Truncated } else { DamageKind::Torn };
            prop_assert_eq!(kind, expected);
        }

        #[test]
        fn any_cut_inside_is_seen(from in any::<prop::sample::Index>(), bytes_cut in 1..2000_usize) {
            let (_folder, path, mut bytes, head) = written();
            let from = from.index(bytes.len());
            let end = (from + bytes_cut).min(bytes.len());
            bytes.drain(from..end);
            prop_assert!(damage(&path, &bytes, head).is_some());
        }
    }

    #[test]
    fn a_log_that_was_made_anew_is_not_the_recorded_one() {
        let (_folder, path, _, head) = written();
        std::fs::remove_file(&path).unwrap();
        let mut log = open(&path, None).log;
        for number in 1..=LINES {
            append(&mut log, number + 1);
        }
        log.sync().unwrap();
        let found = looked_at(&path, Some(head)).damage.unwrap();
        assert_eq!((found.line, found.kind), (LINES, DamageKind::Rewritten));
        // Noted in the middle, elsewhere.
        assert_eq!(looked_at(&path, None).damage, None);
        let noted = Head { seq: 3, hash: head.hash };
        let expected = Expected { recorded: None, noted: Some(noted) };
        let found = verify(&path, &expected, drop).unwrap().damage.unwrap();
        assert_eq!((found.line, found.kind), (3, DamageKind::Rewritten));
        std::fs::remove_file(&path).unwrap();
        let found = looked_at(&path, Some(head)).damage.unwrap();
        assert_eq!((found.line, found.kind), (1, DamageKind::Truncated));
    }

    #[test]
    fn a_torn_line_is_noted_in_the_chain() {
        let (_folder, path, bytes, _) = written();
        // The head before the line that was being written.
        std::fs::write(&path, lines(&bytes)[..11].concat()).unwrap();
        let before = looked_at(&path, None).head;
        std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
        let opened = open(&path, Some(before));
        assert_eq!(opened.damage, None);
        let mut kinds = Vec::new();
        let found = verify(&path, &Expected::default(), |entry| kinds.push(entry.kind)).unwrap();
        assert_eq!(found.damage, None);
        assert_eq!(kinds.last(), Some(&AuditKind::LogTorn));
        assert_eq!((found.lines, found.head), (12, opened.log.head()));
    }

    #[test]
    fn damage_is_noted_and_stays_named() {
        let (_folder, path, bytes, head) = written();
        let mut lines = lines(&bytes);
        lines.remove(4);
        std::fs::write(&path, lines.concat()).unwrap();
        let mut opened = open(&path, Some(head));
        assert_eq!(opened.damage.unwrap().line, 5);
        let head = append(&mut opened.log, 20);
        assert_eq!(head.seq, LINES + 2);
        let found = looked_at(&path, Some(head)).damage.unwrap();
        assert_eq!((found.line, found.kind), (5, DamageKind::CutOut));
        // Cut at its end: numbers that were given are not given again.
        std::fs::write(&path, &bytes[..0]).unwrap();
        let opened = open(&path, Some(head));
        assert_eq!(opened.log.head().seq, head.seq + 1);
        let found = looked_at(&path, Some(head)).damage.unwrap();
        assert_eq!((found.line, found.kind), (1, DamageKind::CutOut));
    }

    #[test]
    fn the_ledger_keeps_the_head() {
        let (folder, _, _, head) = written();
        let path = folder.path().join("ledger.db");
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.audit_head().unwrap(), None);
        ledger.set_audit_head(&Head::START).unwrap();
        ledger.set_audit_head(&head).unwrap();
        drop(ledger);
        assert_eq!(Ledger::open_read_only(&path).unwrap().audit_head().unwrap(), Some(head));
        assert_eq!(head.to_string().parse(), Ok(head));
        assert!("17".parse::<Head>().is_err());
    }

    #[test]
    fn exports_are_filtered_and_complete() {
        let (_folder, path, _, _) = written();
        let mut entries = Vec::new();
        let filter = ExportFilter {
            tenant: Some("acme".parse().unwrap()),
            from: Some(Timestamp::from_nanoseconds(4_000_000_000)),
            to: Some(Timestamp::from_nanoseconds(8_000_000_000)),
        };
        let taken = |entry| entries.extend(Some(entry).filter(|entry| filter.takes(entry)));
        verify(&path, &Expected::default(), taken).unwrap();
        let (mut json, mut csv) = (Vec::new(), Vec::new());
        let mut exporters = [Exporter::json(&mut json).unwrap(), Exporter::csv(&mut csv).unwrap()];
        for exporter in &mut exporters {
            entries.iter().for_each(|entry| exporter.write(entry).unwrap());
        }
        exporters.into_iter().for_each(|exporter| exporter.finish().unwrap());
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let seqs: Vec<_> = json["events"].as_array().unwrap().iter().map(|e| &e["seq"]).collect();
        assert_eq!(seqs, [4, 6]);
        assert_eq!(json["events"][0]["time"], "1970-01-01T00:00:04Z");
        let text = String::from_utf8(csv).unwrap();
        let first = "4,1970-01-01T00:00:04Z,limits,agent,lease-4,acme,";
        assert!(text.lines().nth(1).unwrap().starts_with(first), "{text}");
        assert!(text.contains("lease-6"), "{text}");
    }
}
