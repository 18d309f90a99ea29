//! What a real kernel makes of it: this program is the first one of a QEMU guest with an IOMMU and
//! emulated devices (`run.sh`). Anywhere else it says so and does nothing.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "the console is all that there is, and a check fails by panicking"
)]

mod checks;
mod machine;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    if std::process::id() != 1 || !machine::is_guest() {
        println!("skipped: this runs in a guest; driver-zones/hw/tests/guest/run.sh starts one");
        return ExitCode::SUCCESS;
    }
    let prepared = machine::prepare();
    println!("suite: {}", machine::kernel());
    let mut failed = u32::from(prepared.is_err());
    if let Err(why) = prepared {
        println!("suite: the guest cannot be prepared: {why}");
    } else {
        for (name, check) in checks::ALL {
            let began = Instant::now();
            let outcome = std::panic::catch_unwind(check);
            let took = began.elapsed().as_secs_f32();
            match outcome {
                Ok(checks::Outcome::Shown) => println!("ok       {name} ({took:.1} s)"),
                Ok(checks::Outcome::Skipped(why)) => println!("skipped  {name}: {why}"),
                Err(_) => {
                    failed += 1;
                    println!("FAILED   {name}");
                }
            }
        }
    }
    println!("suite: {failed} failed");
    machine::power_off()
}
