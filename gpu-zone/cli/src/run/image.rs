//! `--rootfs` with an OCI image layout: what is run, and with which variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use gpuzone_image::{Image, ImageError, Layout, Limits};

use crate::arguments::{Run, Sandboxing};
use crate::error::{CliError, Kind};
use crate::run::program::Program;

/// Where root's images are, as a cache of the whole machine (file-hierarchy(7)).
const SYSTEM_CACHE: &str = "/var/cache/gpu-zone/images";

/// The image that `run` names, unpacked; `None` when it names none.
pub(crate) fn of(run: &Run) -> Result<Option<Image>, CliError> {
    let Some(layout) = run.rootfs.as_deref().and_then(Layout::find) else { return Ok(None) };
    if run.sandbox == Sandboxing::Off {
        let message = "an image runs in a sandbox only, and --sandbox off asks for none";
        return Err(CliError::new(Kind::Usage, message));
    }
    let image = Image::unpack(&layout, &cache()?, Limits::default());
    let image = image.map_err(|error| {
        let kind = match error {
            ImageError::Io { .. } => Kind::Configuration,
            _ => Kind::Usage,
        };
        CliError::caused(kind, &error)
    })?;
    if let Some(user) = &image.user {
        let user = gpuzone_ledger::printable(user);
        eprintln!(
            "gpu-zone: the image asks for user '{user}'; programs run as their zone's root, which \
             has no privileges"
        );
    }
    Ok(Some(image))
}

fn cache() -> Result<PathBuf, CliError> {
    if rustix::process::geteuid().is_root() {
        return Ok(SYSTEM_CACHE.into());
    }
    let whole = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let folder = whole("XDG_CACHE_HOME").or(whole("HOME").map(|home| home.join(".cache")));
    let missing = "an image is unpacked into the user's cache, and neither XDG_CACHE_HOME nor HOME \
                   names a folder";
    let folder = folder.ok_or_else(|| CliError::new(Kind::Configuration, missing))?;
    Ok(folder.join("gpu-zone/images"))
}

/// All words of the command: the image's entrypoint, and then what `run` says or else what the
/// image does.
pub(crate) fn command(image: &Image, asked: &[OsString]) -> Vec<OsString> {
    let usual: Vec<OsString> = image.arguments.iter().map(OsString::from).collect();
    let arguments = if asked.is_empty() { &usual } else { asked };
    image.entrypoint.iter().map(OsString::from).chain(arguments.iter().cloned()).collect()
}

/// The program in the image.
pub(crate) fn program(image: &Image, command: &[OsString]) -> Result<Program, CliError> {
    let Some((name, arguments)) = command.split_first() else {
        let message = "the image names no program, and the command line does not either";
        return Err(CliError::new(Kind::Usage, message));
    };
    let text = name.to_string_lossy();
    let Some(file) = image.find(&text) else {
        let shown = gpuzone_ledger::printable(&text);
        let message = format!("there is no program '{shown}' in the image; nothing was started");
        let hint = "it is looked for in the image's PATH and from its working directory";
        return Err(CliError::new(Kind::NoProgram, message).hint(hint));
    };
    Ok(Program { file, name: name.clone(), arguments: arguments.to_vec() })
}

/// The image's variables, and those without which the host's would lead its programs astray.
pub(crate) fn environment(image: &Image) -> Vec<(OsString, OsString)> {
    const USUAL: [(&str, &str); 2] =
        [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/")];
    let named = image.environment.iter().filter_map(|variable| variable.split_once('='));
    // What a lease's programs are told is the agent's to say.
    let named = named.filter(|(name, _)| !name.starts_with("GPUZONE_"));
    let usual = USUAL.into_iter().filter(|(name, _)| image.variable(name).is_none());
    usual.chain(named).map(|(name, value)| (name.into(), value.into())).collect()
}

/// The shim's libraries as files of their own: where they are installed, the image has nothing.
pub(crate) fn libraries(shim: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = std::fs::read_dir(shim).into_iter().flatten().flatten();
    let library =
        |entry: std::fs::DirEntry| Some((std::fs::canonicalize(entry.path()).ok()?, entry.path()));
    entries.filter_map(library).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            root: "/images/x".into(),
            digest: String::new(),
            environment: vec!["HOME=/root".into(), "GPUZONE_SLOT=/forged".into()],
            directory: "/".into(),
            entrypoint: vec!["/entry".into()],
            arguments: vec!["usual".into()],
            user: None,
        }
    }

    #[test]
    fn the_command_line_wins_over_the_images_arguments_and_not_over_its_entrypoint() {
        assert_eq!(command(&image(), &[]), ["/entry", "usual"]);
        assert_eq!(command(&image(), &["mine".into()]), ["/entry", "mine"]);
        let error = program(&image(), &["mine".into()]).unwrap_err();
        assert_eq!(error.kind, Kind::NoProgram);
    }

    #[test]
    fn an_image_does_not_say_where_its_slot_is() {
        let variables = environment(&image());
        assert!(variables.iter().all(|(name, _)| name != "GPUZONE_SLOT"));
        assert!(variables.contains(&("HOME".into(), "/root".into())));
        assert!(variables.iter().any(|(name, _)| name == "PATH"));
    }
}
