//! A worker's zone, made by a maker for who may not make one.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use gpuzone_zone::maker::{Files, Kind, Maker, Sandbox, Template, line};
use gpuzone_zone::sandbox::{Launch, MakerSandbox, Mount, Sandboxed, Spec};
use tokio::runtime::Runtime;

use crate::{RUNS, null, show as line_of, spec};

pub(crate) fn show(runtime: &Runtime) -> Result<(), Box<dyn Error>> {
    let launcher = PathBuf::from(env!("CARGO_BIN_EXE_gpu-zone-sandbox"));
    let folder = tempfile::tempdir()?;
    let kind = Kind { arguments: Vec::new(), files: 0, device_memory: BTreeMap::new() };
    let template = Template {
        program: "/usr/bin/true".into(),
        environment: BTreeMap::new(),
        kinds: BTreeMap::from([("worker".into(), kind)]),
        sandbox: Some(Sandbox { launcher: launcher.clone(), spec: spec(false) }),
    };
    let view = MakerSandbox {
        zone: "bench-maker".to_owned(),
        read: vec![launcher.clone()],
        write: vec![folder.path().to_owned()],
        users: true,
        ..MakerSandbox::default()
    };
    let view = view.spec()?;
    let mounts = view.mounts.iter().cloned().chain([Mount::read("/usr")]).collect();
    let (ours, theirs) = line()?;
    let launch = Launch {
        program: launcher.clone(),
        arguments: vec!["--make".into(), folder.path().into()],
        environment: BTreeMap::new(),
        stdin: template.to_file()?,
        stdout: null()?,
        stderr: null()?,
        inherit: vec![theirs],
    };
    let (process, _) = Sandboxed { launcher, spec: Spec { mounts, ..view }, launch }.start()?;
    let (begun, whole) = runtime.block_on(measure(ours))?;
    line_of("worker's sandbox by the maker, asked for to first instruction", begun);
    line_of("worker's sandbox by the maker, asked for to exit", whole);
    runtime.block_on(process.exited())?;
    Ok(())
}

async fn measure(
    line: std::os::fd::OwnedFd,
) -> Result<(std::time::Duration, std::time::Duration), Box<dyn Error>> {
    let maker = Maker::connect(line).await?;
    let (mut begun, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        let files = Files { stdin: null()?, stdout: null()?, stderr: null()?, inherit: Vec::new() };
        let zone = maker.make("worker", "worker", files).await?;
        zone.start().await?;
        begun.push(start.elapsed());
        zone.ended().await;
        whole.push(start.elapsed());
    }
    maker.close().await;
    begun.sort();
    whole.sort();
    Ok((begun[RUNS / 2], whole[RUNS / 2]))
}
