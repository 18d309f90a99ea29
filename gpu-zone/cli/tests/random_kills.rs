//! Random kills during a load, see `gpuzone_testkit::kills`.

#[cfg(test)]
mod tests {
    use gpuzone_testkit::kills::play;

    /// Every kind of victim twice.
    const ROUNDS: u32 = 10;

    #[test]
    fn whoever_is_killed_nobody_else_notices() {
        let seed = std::env::var("GPUZONE_KILLS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9);
        println!("GPUZONE_KILLS_SEED={seed}");
        let tally = play(ROUNDS, seed, |tally| println!("{tally:?}")).unwrap();
        assert!(tally.killed > 0 && tally.launches > 0, "{tally:?}");
    }
}
