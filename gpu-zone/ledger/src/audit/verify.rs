use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use super::{AuditEntry, Head, line};

/// What a log is held against, beside itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The head that the ledger has.
    pub recorded: Option<Head>,
    /// One that somebody noted earlier, elsewhere.
    pub noted: Option<Head>,
}

/// A log that was looked at from its first line to its last.
#[derive(Debug)]
pub struct Verified {
    /// The last line up to which all was in order.
    pub head: Head,
    /// Lines that are there.
    pub lines: u64,
    /// The first thing that is wrong.
    pub damage: Option<Damage>,
}

/// What is wrong with a log, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The line, from 1; one past the last when the end is missing.
    pub line: u64,
    /// What became of it.
    pub kind: DamageKind,
    /// In words.
    pub detail: String,
}

/// What becomes of a log that is not left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// A line was changed.
    Altered,
    /// Lines were taken out.
    CutOut,
    /// A line stands where it was not written, or twice.
    Reordered,
    /// The end is missing.
    Truncated,
    /// The last line has no end: a crash while it was written, or a cut.
    Torn,
    /// Whole and consistent, and not what was recorded elsewhere.
    Rewritten,
}

impl DamageKind {
    /// For programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::CutOut => "cut_out",
            Self::Reordered => "reordered",
            Self::Truncated => "truncated",
            Self::Torn => "torn",
            Self::Rewritten => "rewritten",
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            DamageKind::Altered => "was altered",
            DamageKind::CutOut => "does not follow: lines before it were cut out",
            DamageKind::Reordered => "is not in its place",
            DamageKind::Truncated => "is missing: the end was cut off",
            DamageKind::Torn => "has no end",
            DamageKind::Rewritten => "is not the one that was recorded",
        };
        write!(f, "line {} {what}: {}", self.line, self.detail)
    }
}

/// Looks at each line of the log at `path`, and gives those in order to `each`. A log that is
/// not there has no lines.
///
/// # Errors
/// When the file cannot be read.
pub fn verify(
    path: &Path,
    expected: &Expected,
    mut each: impl FnMut(AuditEntry),
) -> io::Result<Verified> {
    verify_while(path, expected, |entry| {
        each(entry);
        ControlFlow::Continue(())
    })
}

/// As [`verify`], until `each` has seen enough; what is behind is not looked at then, and not
/// said to be missing.
///
/// # Errors
/// When the file cannot be read.
pub fn verify_while(
    path: &Path,
    expected: &Expected,
    mut each: impl FnMut(AuditEntry) -> ControlFlow<()>,
) -> io::Result<Verified> {
    let mut lines: Box<dyn BufRead> = match File::open(path) {
        Ok(file) => Box::new(BufReader::with_capacity(1 << 16, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Box::new(io::empty()),
        Err(error) => return Err(error),
    };
    let mut found = Verified { head: Head::START, lines: 0, damage: None };
    let mut line = Vec::new();
    // Whether the line that should stand where the damage is stands behind it, which tells a cut
    // from a move.
    let mut moved = false;
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        found.lines += 1;
        if found.damage.is_some() {
            moved |= line::claimed_seq(&line) == Some(found.head.seq + 1);
            continue;
        }
        match follow(&found.head, &line, expected) {
            Ok((head, entry)) => {
                found.head = head;
                if each(entry).is_break() {
                    return Ok(found);
                }
            }
            Err((kind, detail)) => {
                found.damage = Some(Damage { line: found.lines, kind, detail });
            }
        }
    }
    match &mut found.damage {
        Some(damage) if damage.kind == DamageKind::CutOut && moved => {
            damage.kind = DamageKind::Reordered;
        }
        Some(_) => {}
        None => found.damage = short_of(&found, expected),
    }
    Ok(found)
}

type Fault = (DamageKind, String);

fn follow(head: &Head, line: &[u8], expected: &Expected) -> Result<(Head, AuditEntry), Fault> {
    if !line.ends_with(b"\n") {
        let detail = format!("{} bytes stand where a line should", line.len());
        return Err((DamageKind::Torn, detail));
    }
    let (hash, entry) =
        line::read(line).map_err(|error| (DamageKind::Altered, error.to_string()))?;
    let next = head.seq + 1;
    if entry.seq != next {
        let kind = if entry.seq > next { DamageKind::CutOut } else { DamageKind::Reordered };
        return Err((kind, format!("number {next} should stand here, and this is {}", entry.seq)));
    }
    if entry.prev != head.hash {
        let detail = "it does not hold the hash of the line before it".to_owned();
        return Err((DamageKind::Altered, detail));
    }
    let reached = Head { seq: next, hash };
    for known in [expected.recorded, expected.noted].into_iter().flatten() {
        if known.seq == reached.seq && known != reached {
            let detail = format!("its hash is {hash}, and {} was recorded", known.hash);
            return Err((DamageKind::Rewritten, detail));
        }
    }
    Ok((reached, entry))
}

fn short_of(found: &Verified, expected: &Expected) -> Option<Damage> {
    let known = [expected.recorded, expected.noted].into_iter().flatten().map(|head| head.seq);
    let last = known.max().filter(|last| *last > found.head.seq)?;
    Some(Damage {
        line: found.lines + 1,
        kind: DamageKind::Truncated,
        detail: format!("{last} lines were recorded, and the log has {}", found.head.seq),
    })
}
