use super::devices::reason;
use super::{Context, Outcome};
use crate::catalog as c;
use crate::driver::launch::Change;
use crate::driver::{Answer, Task};
use crate::finding::Finding;
use crate::options::shown;

pub(super) fn check(context: &mut Context<'_>, outcome: &mut Outcome) {
    if let Some(why) = &context.seen.no_cuda {
        return outcome.untested(why.clone());
    }
    for (ordinal, device) in (0_u16..).zip(&context.seen.devices) {
        let free = device.free.unwrap_or(0);
        let bytes = context.options.residue.get().min(free / 4);
        if bytes == 0 {
            outcome.untested(format!("device {ordinal} has no free memory to look at"));
            continue;
        }
        (context.announce)(&format!(
            "reading {} of fresh memory of device {ordinal}",
            shown(bytes)
        ));
        match context.launcher.ask(Task::Residue { device: ordinal, bytes }, &Change::default()) {
            Answer::Residue(found) if found.nonzero > 0 => {
                let (nonzero, read) = (found.nonzero, shown(found.read));
                let seen = format!("device {ordinal}: {nonzero} bytes of {read} are not zero");
                outcome.found(Finding::new(&c::RESIDUE, seen));
            }
            Answer::Residue(found) if found.read == 0 => {
                outcome.untested(format!("device {ordinal}: no memory could be allocated"));
            }
            Answer::Residue(_) => {}
            other => outcome.untested(reason(other)),
        }
    }
}
