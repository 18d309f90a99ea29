//! `cargo xtask kills`: the long set of random kills.

use anyhow::Context;
use gpuzone_testkit::kills::play;

/// Plays `rounds` rounds; whatever fails names the seed.
///
/// # Errors
/// When a kill was noticed by somebody else, or something did not come back.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn kills(rounds: u32, seed: Option<u64>) -> anyhow::Result<()> {
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_nanos()) ^ now.as_secs())
    });
    println!("{rounds} rounds, --seed {seed}");
    let each = rounds.div_ceil(20).max(1);
    let tally = play(rounds, seed, |tally| {
        if tally.rounds % each == 0 {
            println!(
                "round {}: {} killed, {} survived",
                tally.rounds, tally.killed, tally.survived
            );
        }
    });
    let tally = tally.with_context(|| format!("with --seed {seed}"))?;
    println!(
        "{} rounds: {} killed; {} programs ended well with {} launches, each counted once",
        tally.rounds, tally.killed, tally.survived, tally.launches
    );
    Ok(())
}
