//! What the command line says. It is a contract between programs (docs/driver-zones.md): `gpu-zone`
//! writes it, with paths as the zone shows them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;

use gpuzone_core::VfToken;
use gpuzone_wire::control::{Accelerator, Hypervisor};
use gpuzone_wire::workload_link::Order;
use gpuzone_zone::microvm::{self, Passthrough};
use serde::Deserialize;

/// The machine, and what of the zone it gets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Orders {
    #[serde(default)]
    pub(crate) hypervisor: Hypervisor,
    pub(crate) program: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) image: PathBuf,
    /// What files have to be.
    #[serde(default)]
    pub(crate) digests: BTreeMap<PathBuf, String>,
    pub(crate) accelerator: Accelerator,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) processors: u32,
    /// Most processes of the program's that are connected at once.
    pub(crate) windows: u16,
    /// The program's files.
    pub(crate) root: PathBuf,
    /// The shim's libraries, where the lease has a worker.
    #[serde(default)]
    pub(crate) libraries: Option<PathBuf>,
    /// The lease's slot, where it has a worker.
    #[serde(default)]
    pub(crate) slot: Option<PathBuf>,
    /// Functions that the program has itself, like `0000:3b:00.0`; bound to VFIO already.
    #[serde(default)]
    pub(crate) devices: Vec<String>,
    /// The descriptor of a file with the tokens of those that need one: `{"0000:3b:00.1": "UUID"}`.
    /// Everybody on the host may read a command line, so they are not in here.
    #[serde(default)]
    pub(crate) tokens: Option<u32>,
    /// The program's working directory, in its root.
    pub(crate) directory: PathBuf,
    pub(crate) pids: Option<u64>,
    /// Bytes in each private folder.
    pub(crate) scratch: Option<u64>,
}

/// The machine, and what it runs.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) orders: Orders,
    pub(crate) order: Order,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("usage: gpu-zone-vm ORDERS -- FILE NAME [ARG]...")]
    Usage,
    #[error("the orders cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0} is not UTF-8, and only that reaches a program in a microVM")]
    Text(String),
    #[error("the tokens of virtual functions cannot be read: {0}")]
    Tokens(io::Error),
    #[error("what was handed over as tokens of virtual functions is none")]
    NoTokens,
}

impl Orders {
    pub(crate) fn hypervisor(&self) -> microvm::Hypervisor {
        match self.hypervisor {
            Hypervisor::Qemu => microvm::Hypervisor::Qemu,
            Hypervisor::CloudHypervisor => microvm::Hypervisor::CloudHypervisor,
        }
    }

    /// The functions, with their tokens.
    pub(crate) fn passthrough(&self) -> Result<Vec<Passthrough>, CommandError> {
        let file = self.tokens.map(|number| fs::read(format!("/proc/self/fd/{number}")));
        let file = file.transpose().map_err(CommandError::Tokens)?;
        let tokens = file.map(|file| tokens(&file)).transpose()?.unwrap_or_default();
        let device = |address: &String| Passthrough {
            address: address.clone(),
            vf_token: tokens.get(address).cloned(),
        };
        Ok(self.devices.iter().map(device).collect())
    }
}

/// What the file says, which no error repeats.
fn tokens(file: &[u8]) -> Result<BTreeMap<String, VfToken>, CommandError> {
    let read: BTreeMap<String, String> =
        serde_json::from_slice(file).map_err(|_| CommandError::NoTokens)?;
    let token = |(address, text): (String, String)| Some((address, text.parse().ok()?));
    let tokens: Option<BTreeMap<_, _>> = read.into_iter().map(token).collect();
    tokens.ok_or(CommandError::NoTokens)
}

impl Command {
    pub(crate) fn read(words: Vec<OsString>) -> Result<Self, CommandError> {
        let text = |word: OsString| {
            let wrong = |word: OsString| CommandError::Text(word.display().to_string());
            word.into_string().map_err(wrong)
        };
        let mut words = words.into_iter();
        let orders = text(words.next().ok_or(CommandError::Usage)?)?;
        if words.next().is_none_or(|word| word != "--") {
            return Err(CommandError::Usage);
        }
        let file = PathBuf::from(words.next().ok_or(CommandError::Usage)?);
        let name = text(words.next().ok_or(CommandError::Usage)?)?;
        let arguments = words.map(text).collect::<Result<_, _>>()?;
        let orders: Orders = serde_json::from_str(&orders)?;
        let variables = std::env::vars_os().map(|(name, value)| Ok((text(name)?, text(value)?)));
        let environment = variables.collect::<Result<_, CommandError>>()?;
        let devices =
            (0..orders.devices.len()).map(|n| orders.hypervisor().device_place(n)).collect();
        let Orders { directory, pids, scratch, .. } = orders.clone();
        let order = Order { file, name, arguments, environment, directory, pids, scratch, devices };
        Ok(Self { orders, order })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    const ORDERS: &str = r#"{"program":"/q","kernel":"/k","image":"/i","accelerator":"tcg",
        "memory":1,"processors":1,"windows":1,"root":"/guest/root","libraries":"/guest/lib",
        "slot":"/guest/slot","directory":"/","pids":7,"scratch":null}"#;

    fn read(words: &[&str]) -> Result<Command, CommandError> {
        Command::read(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn a_program_has_a_name_and_what_is_no_order_is_refused() {
        let command = read(&[ORDERS, "--", "/bin/sh", "sh", "-c", "exit 3"]).unwrap();
        assert_eq!((command.order.name.as_str(), command.order.pids), ("sh", Some(7)));
        assert_eq!(command.order.arguments, ["-c", "exit 3"]);
        for wrong in [&[][..], &[ORDERS], &[ORDERS, "--", "/bin/sh"], &[ORDERS, "/bin/sh", "sh"]] {
            assert!(matches!(read(wrong), Err(CommandError::Usage)), "{wrong:?}");
        }
        for wrong in ["{}", "", &ORDERS.replace("\"pids\"", "\"colour\"")] {
            assert!(
                matches!(read(&[wrong, "--", "a", "b"]), Err(CommandError::Json(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn tokens_are_read_from_a_file_and_never_repeated() {
        const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";
        let read_with = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            let devices = "\"devices\":[\"0000:3b:00.1\",\"0000:3b:00.2\"],\"tokens\":";
            let with = format!("{{{devices}{},", file.as_raw_fd());
            let orders = ORDERS.replacen('{', &with, 1);
            read(&[&orders, "--", "a", "b"]).unwrap().orders.passthrough()
        };
        let two = read_with(&format!("{{\"0000:3b:00.2\":\"{TOKEN}\"}}")).unwrap();
        assert_eq!((two[0].address.as_str(), &two[0].vf_token), ("0000:3b:00.1", &None));
        assert_eq!(two[1].vf_token, Some(TOKEN.parse().unwrap()));
        for wrong in ["{\"0000:3b:00.2\":\"secret\"}", "secret", "", "[\"secret\"]"] {
            let said = format!("{:?}", read_with(wrong).unwrap_err());
            assert!(!said.contains("secret"), "{said}");
        }
        let none = read(&[ORDERS, "--", "a", "b"]).unwrap().orders.passthrough().unwrap();
        assert!(none.is_empty());
    }
}
