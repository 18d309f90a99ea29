//! One connection: who asks, for what, and on which terms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Kept;
use crate::files::in_memory;
use crate::packets::{self, Packet};

/// How long somebody may take to say what he wants.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest words and environment of a program.
const LONGEST: u64 = 4 << 20;

/// What somebody wants.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Wish {
    /// A program on these terms.
    Run(BTreeMap<String, String>),
    /// A program on whatever terms there are.
    Exec,
    /// To see what there is.
    Look,
    /// The zone's end.
    Stop,
}

/// How a connection is left.
#[derive(Debug)]
pub(super) enum Left {
    /// A program has it now; process 1 says when that is over.
    Program,
    /// It is over.
    Nothing,
    /// Somebody waits on it for the zone's end.
    Stop(OwnedFd),
}

pub(super) async fn serve(kept: &Kept, line: OwnedFd) -> Left {
    // Whoever breaks the line, or says nothing, gets nothing.
    match tokio::time::timeout(LIMIT, converse(kept, line)).await {
        Ok(Ok(left)) => left,
        Ok(Err(_)) | Err(_) => Left::Nothing,
    }
}

async fn converse(kept: &Kept, line: OwnedFd) -> io::Result<Left> {
    let line = packets::watched(line)?;
    let Some(packet) = packets::receive_soon(&line).await? else { return Ok(Left::Nothing) };
    let answer = |what: Value| packets::send(&line, what.to_string().as_bytes(), &[]);
    match serde_json::from_slice(&packet.text) {
        Ok(Wish::Run(terms)) => {
            if let Some(reason) = difference(&kept.name, &kept.terms, &terms) {
                answer(json!({ "refused": reason }))?;
                return Ok(Left::Nothing);
            }
        }
        Ok(Wish::Exec) => {}
        Ok(Wish::Look) => {
            answer(look(kept)?)?;
            return Ok(Left::Nothing);
        }
        Ok(Wish::Stop) => return Ok(Left::Stop(line.into_inner())),
        Err(error) => {
            answer(json!({ "refused": format!("the zone's keeper does not know that: {error}") }))?;
            return Ok(Left::Nothing);
        }
    }
    answer(json!({ "welcome": kept.welcome }))?;
    let Some(packet) = packets::receive_soon(&line).await? else { return Ok(Left::Nothing) };
    match hand_over(kept, &line, packet) {
        Ok(()) => Ok(Left::Program),
        Err(error) => {
            answer(json!({ "refused": format!("the zone takes no more programs now: {error}") }))?;
            Ok(Left::Nothing)
        }
    }
}

/// Gives process 1 the program's words and files, and the connection itself.
fn hand_over(
    kept: &Kept,
    line: &tokio::io::unix::AsyncFd<OwnedFd>,
    packet: Packet,
) -> io::Result<()> {
    let Ok([body, stdin, stdout, stderr]) = <[OwnedFd; 4]>::try_from(packet.files) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let files = [line.get_ref().try_clone()?, copied(body)?, stdin, stdout, stderr];
    kept.programs.fetch_add(1, Ordering::SeqCst);
    let sent = packets::send(&kept.channel, b"run", &files);
    if sent.is_err() {
        one_less(kept);
    }
    sent
}

pub(super) fn one_less(kept: &Kept) {
    kept.programs.fetch_sub(1, Ordering::SeqCst);
}

/// The words in a file of the keeper's own: nobody changes or stops it while it is read.
fn copied(body: OwnedFd) -> io::Result<OwnedFd> {
    let stat = fstat(&body)?;
    let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || length > LONGEST {
        let message = "a program's words are at most 4 MiB, in a file in memory";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut theirs = File::from(body);
    theirs.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    theirs.take(LONGEST).read_to_end(&mut text)?;
    in_memory("program", &text)
}

fn look(kept: &Kept) -> io::Result<Value> {
    let stats = kept.zone.stats()?;
    Ok(json!({ "zone": {
        "name": kept.name,
        "kind": "sandbox",
        "state": kept.zone.state(),
        "terms": kept.terms,
        "programs": kept.programs.load(Ordering::SeqCst),
        "processes": stats.processes,
        "memory_bytes": stats.memory,
        "cpu_nanoseconds": u64::try_from(stats.cpu.as_nanos()).unwrap_or(u64::MAX),
    } }))
}

/// What is asked for and is not so, in words.
fn difference(
    name: &str,
    here: &BTreeMap<String, String>,
    asked: &BTreeMap<String, String>,
) -> Option<String> {
    const NOTHING: &str = "nothing";
    let keys: std::collections::BTreeSet<&String> = here.keys().chain(asked.keys()).collect();
    let of = |terms: &BTreeMap<String, String>, key: &String| {
        terms.get(key).map_or(NOTHING, String::as_str).to_owned()
    };
    let differ = keys.into_iter().filter(|key| here.get(*key) != asked.get(*key));
    let said: Vec<String> = differ
        .map(|key| format!("{key} is {} there and {} is asked for", of(here, key), of(asked, key)))
        .collect();
    let whole = || format!("zone '{name}' is there already, on other terms: {}", said.join("; "));
    (!said.is_empty()).then(whole)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn terms(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_refusal_names_all_that_differs_and_nothing_else() {
        let here = terms(&[("tenant", "acme"), ("memory", "1Gi"), ("network", "the host's")]);
        assert_eq!(difference("a", &here, &here), None);
        let other = terms(&[("tenant", "globex"), ("memory", "1Gi"), ("model", "H100")]);
        let said = difference("a", &here, &other).unwrap();
        assert!(said.contains("tenant is acme there and globex is asked for"), "{said}");
        assert!(said.contains("model is nothing there and H100 is asked for"), "{said}");
        assert!(said.contains("network is the host's there and nothing"), "{said}");
        assert!(!said.contains("memory"), "{said}");
    }

    #[test]
    fn words_that_are_no_file_or_too_many_are_refused() {
        let (pipe, _writer) = io::pipe().unwrap();
        assert!(copied(pipe.into()).is_err(), "it would wait for a pipe");
        let file = File::from(memfd_create("words", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LONGEST + 1).unwrap();
        assert!(copied(file.into()).is_err());
        let mut file = File::from(memfd_create("words", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(b"words").unwrap();
        let copy = copied(file.into()).unwrap();
        assert_eq!(io::read_to_string(File::from(copy)).unwrap(), "words");
    }
}
