//! Which image of a layout is meant.

use std::path::{Path, PathBuf};

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os,
};

use crate::ImageError;
use crate::blob::Sum;

const TAG: &str = "org.opencontainers.image.ref.name";
/// Indexes in indexes.
const DEEPEST: usize = 4;
/// More layers than any image has.
const MOST_LAYERS: usize = 256;

/// An image in a layout: its only one, one by tag, or one by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The only one for this machine.
    Only,
    /// By its tag.
    Tag(String),
    /// By its manifest's digest, `sha256:` and 64 digits.
    Digest(String),
}

/// A folder that holds images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(crate) folder: PathBuf,
    pub(crate) reference: Reference,
}

impl Layout {
    /// The layout that `path` names: `DIR`, `DIR:tag` or `DIR@sha256:...`. `None` where there is
    /// none, as in any other folder.
    pub fn find(path: &Path) -> Option<Self> {
        let is_layout = |folder: &Path| folder.join("oci-layout").is_file();
        // A folder of that very name wins over what its name could mean.
        if is_layout(path) {
            return Some(Self { folder: path.to_owned(), reference: Reference::Only });
        }
        let text = path.to_str()?;
        let named = |(folder, reference): (&str, Reference)| {
            let folder = PathBuf::from(folder);
            is_layout(&folder).then_some(Self { folder, reference })
        };
        let by_digest = text.rsplit_once('@');
        let by_digest = by_digest.map(|(at, digest)| (at, Reference::Digest(digest.to_owned())));
        let by_tag = text.rsplit_once(':').map(|(at, tag)| (at, Reference::Tag(tag.to_owned())));
        by_digest.and_then(named).or_else(|| by_tag.and_then(named))
    }

    fn wrong(&self, reason: impl ToString) -> ImageError {
        ImageError::Layout { path: self.folder.clone(), reason: reason.to_string() }
    }

    /// The sum that a descriptor names.
    fn sum(&self, descriptor: &Descriptor) -> Result<Sum, ImageError> {
        let digest = descriptor.digest().to_string();
        let unknown = || self.wrong(format!("{digest:?} is no SHA-256 digest"));
        Sum::parse(&digest).ok_or_else(unknown)
    }

    /// The manifest's sum.
    pub(crate) fn choose(&self) -> Result<Sum, ImageError> {
        let path = self.folder.join("index.json");
        let index = ImageIndex::from_file(&path).map_err(|error| self.wrong(error))?;
        let mut chosen: Vec<&Descriptor> = index.manifests().iter().collect();
        match &self.reference {
            Reference::Only => {}
            Reference::Tag(tag) => chosen.retain(|one| tag_of(one) == Some(tag)),
            Reference::Digest(digest) => chosen.retain(|one| one.digest().to_string() == *digest),
        }
        chosen.retain(|one| fits(one));
        let [one] = chosen[..] else {
            let held = index.manifests().iter().map(|one| match tag_of(one) {
                Some(tag) => format!("{tag} ({})", one.digest()),
                None => one.digest().to_string(),
            });
            let held: Vec<String> = held.collect();
            let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
            let wanted = match &self.reference {
                Reference::Only => "that is the only one for this machine".to_owned(),
                Reference::Tag(text) | Reference::Digest(text) => format!("'{text}'"),
            };
            return Err(ImageError::NoImage { layout: self.folder.clone(), wanted, held });
        };
        self.resolve(one)
    }

    /// A manifest, in however many indexes it lies.
    fn resolve(&self, descriptor: &Descriptor) -> Result<Sum, ImageError> {
        let mut descriptor = descriptor.clone();
        for _ in 0..DEEPEST {
            let sum = self.sum(&descriptor)?;
            let media_type = descriptor.media_type().to_string();
            let is_list = media_type == "application/vnd.docker.distribution.manifest.list.v2+json";
            if *descriptor.media_type() != MediaType::ImageIndex && !is_list {
                return Ok(sum);
            }
            let bytes = sum.read(&self.folder)?;
            let index =
                ImageIndex::from_reader(bytes.as_slice()).map_err(|error| self.wrong(error))?;
            let mut fitting = index.manifests().iter().filter(|one| fits(one));
            let machine = std::env::consts::ARCH;
            let none = || self.wrong(format!("{} has no image for {machine}", sum.named()));
            descriptor = fitting.next().ok_or_else(none)?.clone();
        }
        Err(self.wrong("its indexes lie too deep in one another"))
    }

    /// The layers of a manifest with their media types and the sums of what is in them, and the
    /// image's configuration.
    pub(crate) fn image(
        &self,
        manifest: &Sum,
    ) -> Result<(Vec<Layer>, ImageConfiguration), ImageError> {
        let bytes = manifest.read(&self.folder)?;
        let manifest =
            ImageManifest::from_reader(bytes.as_slice()).map_err(|error| self.wrong(error))?;
        let bytes = self.sum(manifest.config())?.read(&self.folder)?;
        let config =
            ImageConfiguration::from_reader(bytes.as_slice()).map_err(|error| self.wrong(error))?;
        let contents = config.rootfs().diff_ids();
        if manifest.layers().len() != contents.len() || contents.len() > MOST_LAYERS {
            return Err(self.wrong("its manifest and its configuration differ about its layers"));
        }
        let layer = |(descriptor, content): (&Descriptor, &String)| {
            let unknown = || self.wrong(format!("{content:?} is no SHA-256 digest"));
            Ok(Layer {
                blob: self.sum(descriptor)?,
                content: Sum::parse(content).ok_or_else(unknown)?,
                media_type: descriptor.media_type().to_string(),
            })
        };
        let layers: Result<_, ImageError> =
            manifest.layers().iter().zip(contents).map(layer).collect();
        Ok((layers?, config))
    }
}

/// A layer of an image.
pub(crate) struct Layer {
    /// As it is stored.
    pub(crate) blob: Sum,
    /// As a tar file.
    pub(crate) content: Sum,
    pub(crate) media_type: String,
}

fn tag_of(descriptor: &Descriptor) -> Option<&String> {
    descriptor.annotations().as_ref()?.get(TAG)
}

/// Whether an image says that it is for another machine.
fn fits(descriptor: &Descriptor) -> bool {
    let own = match std::env::consts::ARCH {
        "x86_64" => Arch::Amd64,
        "aarch64" => Arch::ARM64,
        other => Arch::Other(other.to_owned()),
    };
    descriptor
        .platform()
        .as_ref()
        .is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == own)
}
