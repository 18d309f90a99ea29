//! All messages that come from somebody who may send anything, read from the same bytes: one
//! entry for the property tests and the fuzz target. The ring's records are the worker's to try.

use serde::{Serialize, de::DeserializeOwned};

use crate::control::{Reply, Request};
use crate::handover::WorkerSpec;
use crate::hello::{Hello, Welcome};
use crate::scrub::{ScrubOrder, ScrubReport};
use crate::turn::{FromArbiter, FromWorker, MESSAGE};
use crate::view::{Opening, Seen};

/// What is understood is understood the same when it is said again; how many messages that were.
fn json<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> usize {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return 0 };
    let again = serde_json::to_vec(&message).expect("what was read can be written");
    let read = serde_json::from_slice::<T>(&again).expect("what was written can be read");
    assert_eq!(read, message);
    1
}

/// Reads the bytes as every message there is; as how many they are understood.
///
/// # Panics
/// When one is read as something else than it is written as.
pub fn all(bytes: &[u8]) -> usize {
    // Between a tenant's process and its worker.
    let mut understood = json::<Opening>(bytes) + json::<Welcome>(bytes) + json::<Seen>(bytes);
    understood += json::<Hello>(bytes);
    // Between agent, broker and worker.
    understood += json::<Request>(bytes) + json::<Reply>(bytes) + json::<WorkerSpec>(bytes);
    understood += json::<ScrubOrder>(bytes) + json::<ScrubReport>(bytes);
    for packet in bytes.as_chunks::<MESSAGE>().0 {
        if let Some(message) = FromWorker::decode(packet) {
            assert_eq!(FromWorker::decode(&message.encode()), Some(message));
            understood += 1;
        }
        if let Some(message) = FromArbiter::decode(packet) {
            assert_eq!(FromArbiter::decode(&message.encode()), Some(message));
            understood += 1;
        }
    }
    understood
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::stats::{Monotonic, StatsFile};

    /// Texts that are nearly messages: pieces of them in any order.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("{"),
            Just("}"),
            Just("["),
            Just("]"),
            Just(":"),
            Just(","),
            Just("\""),
            Just("\"request\":\"start\""),
            Just("\"request\":\"hello\""),
            Just("\"version\":1"),
            Just("\"pid\":1"),
            Just("\"look\":1"),
            Just("\"reply\":\"leases\""),
            Just("\"leases\":[]"),
            Just("\"lease\":{\"cuda\":1,\"gpus\":[],\"processes\":[]}"),
            Just("\"refused\":{\"reason\":\"\"}"),
            Just("1e400"),
            Just("-1"),
            Just("null"),
            Just("\\u0000"),
            Just("99999999999999999999"),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn bytes_are_messages_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            all(&bytes);
        }

        #[test]
        fn texts_are_messages_or_are_refused(text in texts()) {
            all(text.as_bytes());
            all(format!("{{{text}}}").as_bytes());
        }

        #[test]
        fn packets_of_turns_are_read_as_they_are_written(
            kind in 0u32..9, rest in any::<[u8; MESSAGE - 4]>(), zeroed in any::<bool>(),
        ) {
            let rest = if zeroed { [0; MESSAGE - 4] } else { rest };
            all(&[&kind.to_le_bytes()[..], &rest].concat());
        }

        /// A worker can write anything into its stats file, and cut it short.
        #[test]
        fn a_stats_file_is_read_or_refused(
            noise in proptest::collection::vec((any::<u16>(), any::<u64>()), 0..40),
            cut in prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let stats = StatsFile::create(&dir.path().join("stats")).expect("made");
            for (word, value) in noise {
                let at = u64::from(word % 900) * 8;
                stats.file().write_all_at(&value.to_ne_bytes(), at).expect("written");
            }
            if let Some(length) = cut {
                stats.file().set_len(length.into()).expect("cut");
            }
            if let Ok(snapshot) = stats.snapshot(Monotonic::now()) {
                prop_assert!(serde_json::to_string(&snapshot.refused_by_name).is_ok());
            }
            let _ = stats.worker_gone(Monotonic::now());
        }
    }
}
