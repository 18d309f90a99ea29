//! The list.

use crate::arena::Arena;
use crate::{calls, death, ring, slot, zone};

/// What a hostile tenant can do.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What it does, for people.
    about: &'static str,
    /// How long it takes in the short set, in seconds.
    seconds: f64,
    /// Which honest tenant takes as much of what is everybody's.
    like: Like,
    /// Whether it needs a zone around it, or is the machine's misfortune.
    zone: bool,
    pub(crate) run: fn(&Arena) -> anyhow::Result<String>,
}

/// An honest tenant.
#[derive(Clone, Copy, Debug)]
enum Like {
    /// Computes on the host's processors.
    Spin,
    /// Computes on the GPU.
    Work,
}

impl Attack {
    pub(crate) fn described(&self) -> String {
        let Self { name, about, seconds, like, zone, run: _ } = self;
        let like = match like {
            Like::Spin => "spin",
            Like::Work => "work",
        };
        serde_json::json!({
            "name": name, "about": about, "seconds": seconds, "like": like, "zone": zone,
        })
        .to_string()
    }
}

macro_rules! attacks {
    ($($name:literal $seconds:literal $like:ident $zone:literal $run:path, $about:literal;)*) => {
        /// All of them.
        pub(crate) const ALL: &[Attack] = &[$(Attack {
            name: $name, about: $about, seconds: $seconds, like: Like::$like, zone: $zone, run: $run,
        }),*];
    };
}

attacks! {
    "calm" 0.2 Spin false zone::calm, "nothing: what starting and ending a zone costs a neighbour";
    "spin" 0.5 Spin false zone::spin, "computes on every processor of the host, as any program may";
    "work" 0.5 Work false calls::work, "computes on the GPU all the time, as any program may";
    "connect" 0.5 Spin false slot::connect, "connects again and again and says nothing";
    "hold" 0.5 Spin false slot::hold, "keeps as many connections open as it can, all silent";
    "half-hello" 0.5 Spin false slot::half_hello, "greets in halves, in rubbish and in excess";
    "descriptors" 0.5 Spin false slot::descriptors, "sends descriptors with every message, hundreds each";
    "chatter" 0.5 Spin false slot::chatter, "goes on talking on the socket after the greeting";
    "reseal" 0.3 Spin false ring::reseal, "shrinks, grows, seals and punches the rings' file";
    "positions" 0.5 Spin false ring::positions, "writes impossible positions into both rings";
    "lengths" 0.5 Spin false ring::lengths, "sends every bad length there is, and each call cut short";
    "race" 0.5 Spin false ring::race, "changes lengths and positions while the worker reads them";
    "replies" 0.5 Work false ring::replies, "writes over the answers, their positions and the errors";
    "unread" 0.5 Work false ring::unread, "asks without end and reads no answer";
    "flood" 0.5 Spin false calls::flood, "posts tiny calls without end";
    "caps" 0.5 Work false calls::caps, "makes as many objects of each kind as it may, and more";
    "churn" 0.5 Work false calls::churn, "allocates and frees memory of all sizes without end";
    "modules" 0.5 Work false calls::modules, "loads huge, deep and nonsensical modules";
    "launches" 0.5 Work false calls::launches, "launches with impossible grids, blocks and arguments";
    "endless" 0.5 Work false calls::endless, "launches a kernel that does not end";
    "poison" 0.5 Work false calls::poison, "launches kernels that ruin its worker, again and again";
    "die" 0.5 Work false death::die_everywhere, "dies in the middle of every call";
    "stop" 0.5 Work false death::stop_everywhere, "stops itself with work under way and answers unread";
    "fork" 0.3 Spin true zone::fork, "forks without end";
    "files" 0.3 Spin true zone::files, "opens every file it can, and all descriptors it may have";
    "fill" 0.3 Spin true zone::fill, "fills every folder it can write to";
    "socket" 0.3 Spin true zone::socket, "renames, replaces and removes its socket and its slot";
    "agent" 0.3 Spin true zone::agent, "looks for the agent's, the broker's and others' sockets";
    "output" 0.3 Spin false zone::output, "prints without end, terminal escapes and all";
}
