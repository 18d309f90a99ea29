//! An image, unpacked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};

use crate::layer::{Limits, Unpacking, furnish};
use crate::layout::Layout;
use crate::tree::Tree;
use crate::{ImageError, blob::Sum};

/// An image whose files are there, and what it says about running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its files. Not to be written to.
    pub root: PathBuf,
    /// Its manifest's digest.
    pub digest: String,
    /// Variables, as `NAME=value`.
    pub environment: Vec<String>,
    /// The working directory.
    pub directory: PathBuf,
    /// What is run before any arguments.
    pub entrypoint: Vec<String>,
    /// The arguments if none are given.
    pub arguments: Vec<String>,
    /// The user that it asks for; `None` for root.
    pub user: Option<String>,
}

impl Image {
    /// The image that `layout` means, unpacked below `cache` unless it is there already.
    ///
    /// # Errors
    /// When the layout has no such image, or one that is damaged, forged or larger than `limits`.
    pub fn unpack(layout: &Layout, cache: &Path, limits: Limits) -> Result<Self, ImageError> {
        let manifest = layout.choose()?;
        let (layers, config) = layout.image(&manifest)?;
        let folder = cache.join(manifest.digits());
        let failed = |source| ImageError::Io { path: folder.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(failed)?;
        let lock = File::options().create(true).append(true).open(folder.with_extension("lock"));
        let lock = lock.map_err(failed)?;
        // Whoever else unpacks it is waited for, and has then done it.
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        if !folder.is_dir() {
            let partial = folder.with_extension("partial");
            // Of one that was killed.
            remove_all(&partial).map_err(failed)?;
            fs::DirBuilder::new().mode(0o700).create(&partial).map_err(failed)?;
            let unpacked = (|| {
                let tree = Tree::open(&partial).map_err(failed)?;
                let mut unpacking = Unpacking { layout, tree: &tree, limits };
                for (layer, number) in layers.iter().zip(1..) {
                    unpacking.apply(number, layer)?;
                }
                furnish(&tree).map_err(failed)
            })();
            if let Err(error) = unpacked {
                let _ = remove_all(&partial);
                return Err(error);
            }
            fs::rename(&partial, &folder).map_err(failed)?;
        }
        Ok(Self::new(folder, &manifest, &config))
    }

    fn new(root: PathBuf, manifest: &Sum, config: &ImageConfiguration) -> Self {
        let config = config.config().clone().unwrap_or_default();
        let user = config.user().clone().filter(|user| {
            let name = user.split(':').next().unwrap_or_default();
            !matches!(name, "" | "0" | "root")
        });
        let directory = config.working_dir().clone().filter(|directory| !directory.is_empty());
        Self {
            root,
            digest: manifest.named(),
            environment: config.env().clone().unwrap_or_default(),
            directory: Path::new("/").join(directory.unwrap_or_default()),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            arguments: config.cmd().clone().unwrap_or_default(),
            user,
        }
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let named = self.environment.iter().filter_map(|variable| variable.split_once('='));
        named.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Where in the image a program is, found as a shell does.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let path = self.variable("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
        find_program(&self.root, &self.directory, path, name)
    }
}

/// Where below `root` a program is, found as a shell does whose working directory is `directory` and
/// whose `PATH` is `path`. Links lead nowhere out of `root`.
pub fn find_program(root: &Path, directory: &Path, path: &str, name: &str) -> Option<PathBuf> {
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![directory.join(name)]
    } else {
        path.split(':').map(|folder| directory.join(folder).join(name)).collect()
    };
    candidates.into_iter().find(|candidate| runs(root, candidate))
}

fn runs(root: &Path, file: &Path) -> bool {
    let open = || -> io::Result<bool> {
        let root = File::open(root)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = openat2(&root, file, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let found = File::from(file).metadata()?;
        Ok(found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    open().unwrap_or(false)
}

/// Removes a folder with all that is in it, whatever the rights on that say.
fn remove_all(folder: &Path) -> io::Result<()> {
    match Tree::open(folder) {
        Ok(tree) => tree.empty(Path::new(""))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_dir(folder)
}
