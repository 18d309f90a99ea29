//! The simulated kernel on a folder, with each write recorded. It can be told to refuse one or to
//! take the writing process with it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpuzone_core::{GpuUuid, PciAddress};
use gpuzone_hw::actions::{
    Devices, JournalError, Places, Recovery, SimulatedKernel, Write, Writes,
};
use gpuzone_hw::alias::ModuleAliases;
use gpuzone_hw::{MigError, MigLayout, MigStep, ProcRoot, SysfsRoot};
use tempfile::TempDir;

use super::instances;

pub(crate) const GPU: &str = "0000:3b:00.0";
pub(crate) const AUDIO: &str = "0000:3b:00.1";
/// Has virtual functions.
pub(crate) const CARD: &str = "0000:5e:00.0";
/// A virtual function on NVIDIA's vGPU driver.
pub(crate) const VGPU: &str = "0000:86:00.4";
/// Can be cut into mediated devices.
pub(crate) const PARENT: &str = "0000:00:02.0";

const ALIASES: &str = "\
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci
";

/// When something goes wrong, counted in writes from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The kernel refuses this one.
    Refuse(usize),
    /// The kernel refuses this one and all behind it.
    RefuseFrom(usize),
    /// The process is gone before this one.
    DieBefore(usize),
    /// And after it.
    DieAfter(usize),
}

/// How a process dies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Death {
    /// A test goes on: unwinding past everything.
    Unwind,
    /// By a signal that nobody catches.
    Kill,
}

pub(crate) struct Killed;

#[derive(Debug)]
pub(crate) struct Kernel {
    root: PathBuf,
    pub(crate) fault: Fault,
    pub(crate) death: Death,
    pub(crate) log: Vec<(String, String)>,
}

pub(crate) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

fn refused(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

const EIO: i32 = 5;

pub(crate) struct Node {
    pub(crate) folder: TempDir,
}

/// What a process finds that starts on a node, and how it got there.
pub(crate) type Opened<W> = (Devices<W>, Vec<Recovery>);

impl Node {
    /// The next process. Another test's child that was just forked, and is no other program yet,
    /// holds for a moment what this one held.
    pub(crate) fn open<W: Writes>(&self, mut writer: impl FnMut() -> W) -> Opened<W> {
        let began = Instant::now();
        loop {
            match Devices::open(self.places(), &self.journal(), writer()) {
                Ok((devices, recovered)) => {
                    return (
                        devices,
                        recovered.into_iter().map(|recovered| recovered.now).collect(),
                    );
                }
                Err(JournalError::InUse { .. }) if began.elapsed() < Duration::from_secs(30) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A GPU with its sound, a card with virtual functions, one of NVIDIA's vGPUs, and one for
    /// mediated devices; each on its own driver.
    pub(crate) fn new() -> Self {
        // In memory where there is such a place: the journal is synced at each step.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let node = Self { folder: folder.unwrap() };
        for driver in [
            "nvidia",
            "snd_hda_intel",
            "ixgbe",
            "i915",
            "vfio-pci",
            "nvgrace-gpu-vfio-pci",
            "pcieport",
        ] {
            fs::create_dir_all(node.sys().join("bus/pci/drivers").join(driver)).unwrap();
        }
        for (module, driver) in
            [("vfio_pci", "vfio-pci"), ("nvgrace_gpu_vfio_pci", "nvgrace-gpu-vfio-pci")]
        {
            let folder = node.sys().join("module").join(module).join("drivers");
            fs::create_dir_all(&folder).unwrap();
            fs::create_dir_all(folder.join(format!("pci:{driver}"))).unwrap();
        }
        put(&node.sys().join("module/vfio_pci/parameters/enable_sriov"), "N");
        fs::create_dir_all(node.sys().join("bus/mdev/devices")).unwrap();
        fs::create_dir_all(node.proc()).unwrap();
        node.function(GPU, 0x2330, "0x030000", "nvidia", 12);
        node.function(AUDIO, 0x22a3, "0x040300", "snd_hda_intel", 12);
        let consumer = node.device(GPU).join(format!("consumer:pci:{AUDIO}"));
        fs::create_dir_all(consumer).unwrap();
        put(&node.device(GPU).join("reset_method"), "flr bus");
        node.function(CARD, 0x1563, "0x020000", "ixgbe", 20);
        put(&node.device(CARD).join("sriov_totalvfs"), "4");
        put(&node.device(CARD).join("sriov_numvfs"), "0");
        put(&node.device(CARD).join("sriov_drivers_autoprobe"), "1");
        node.function(VGPU, 0x26b5, "0x030200", "nvidia", 31);
        put(&node.device(VGPU).join("nvidia/current_vgpu_type"), "0");
        put(
            &node.device(VGPU).join("nvidia/creatable_vgpu_types"),
            "ID    : vGPU Name\n1147  : NVIDIA L40S-1B\n1148  : NVIDIA L40S-2B",
        );
        node.function(PARENT, 0x4680, "0x030000", "i915", 1);
        let kind = node.device(PARENT).join("mdev_supported_types/i915-GVTg_V5_4");
        put(&kind.join("available_instances"), "2");
        put(&kind.join("name"), "GVTg_V5_4");
        put(&kind.join("description"), "low_gm_size: 128MB");
        fs::create_dir_all(kind.join("devices")).unwrap();
        let class = node.sys().join("class/mdev_bus");
        fs::create_dir_all(&class).unwrap();
        symlink(node.device(PARENT), class.join(PARENT)).unwrap();
        node
    }

    pub(crate) fn sys(&self) -> PathBuf {
        self.folder.path().join("sys")
    }

    pub(crate) fn proc(&self) -> PathBuf {
        self.folder.path().join("proc")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.path().join("devices.journal")
    }

    pub(crate) fn device(&self, address: &str) -> PathBuf {
        self.sys().join("bus/pci/devices").join(address)
    }

    pub(crate) fn function(&self, address: &str, id: u16, class: &str, driver: &str, group: u32) {
        let folder = self.device(address);
        fs::create_dir_all(&folder).unwrap();
        let modalias = format!("pci:v000010DEd0000{id:04X}sv0sd0bc03sc00i00");
        for (file, text) in [
            ("class", class),
            ("vendor", "0x10de"),
            ("device", &format!("{id:#06x}")),
            ("modalias", &modalias),
            ("numa_node", "1"),
            ("driver_override", "(null)"),
            ("resource", "0x0000000000100000 0x00000000001fffff 0x0000000000040200"),
            (".default", driver),
        ] {
            put(&folder.join(file), text);
        }
        link_driver(&folder, Some(driver));
        let of = self.sys().join(format!("kernel/iommu_groups/{group}"));
        fs::create_dir_all(of.join("devices")).unwrap();
        symlink(&folder, of.join("devices").join(address)).unwrap();
        symlink(&of, folder.join("iommu_group")).unwrap();
    }

    /// A process with a node open.
    pub(crate) fn holds(&self, pid: u32, name: &str, node: &str) {
        let folder = self.proc().join(pid.to_string());
        put(&folder.join("comm"), name);
        fs::create_dir_all(folder.join("fd")).unwrap();
        symlink(node, folder.join("fd/7")).unwrap();
    }

    pub(crate) fn ends(&self, pid: u32) {
        fs::remove_dir_all(self.proc().join(pid.to_string())).unwrap();
    }

    pub(crate) fn places(&self) -> Places {
        Places {
            sysfs: SysfsRoot(self.sys()),
            proc: ProcRoot(self.proc()),
            aliases: ModuleAliases::parse(ALIASES),
        }
    }

    pub(crate) fn kernel(&self, fault: Fault) -> Kernel {
        Kernel::at(self.sys(), fault, Death::Unwind)
    }

    /// All that actions may change, in words.
    pub(crate) fn state(&self) -> Vec<String> {
        let mut state = Vec::new();
        for function in SysfsRoot(self.sys()).functions().unwrap() {
            let vfs = function.sriov.map(|sriov| (sriov.enabled, sriov.autoprobe));
            state.push(format!(
                "{} on {:?} only {:?}, vfs {vfs:?}, mdevs {:?}, vgpu {:?}, resets by {:?}",
                function.address,
                function.driver,
                function.driver_override,
                function.mdevs,
                function.vgpu.map(|vgpu| vgpu.current),
                function.reset_methods,
            ));
        }
        state.push(format!("{:?}", instances::layout(&self.sys()).instances));
        state
    }
}

fn link_driver(folder: &Path, driver: Option<&str>) {
    let _ = fs::remove_file(folder.join("driver"));
    if let Some(driver) = driver {
        symlink(format!("../../drivers/{driver}"), folder.join("driver")).unwrap();
    }
}

impl Kernel {
    pub(crate) fn at(root: PathBuf, fault: Fault, death: Death) -> Self {
        Self { root, fault, death, log: Vec::new() }
    }

    fn die(&self) -> ! {
        match self.death {
            Death::Unwind => std::panic::resume_unwind(Box::new(Killed)),
            Death::Kill => {
                let own = rustix::process::getpid();
                rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
                unreachable!("a signal that nobody catches")
            }
        }
    }
}

type BeforeCut = Box<dyn Fn(&Path)>;

thread_local! {
    static BEFORE_CUT: std::cell::RefCell<Option<BeforeCut>> = const { std::cell::RefCell::new(None) };
}

/// What happens before each call of the driver's in this test.
pub(crate) fn before_cut(act: impl Fn(&Path) + 'static) {
    BEFORE_CUT.with(|hook| *hook.borrow_mut() = Some(Box::new(act)));
}

impl Kernel {
    /// Goes wrong here, if it is to, before or after `act`.
    fn step<T, E>(
        &mut self,
        shown: (String, String),
        refused: E,
        act: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, E> {
        let number = self.log.len();
        self.log.push(shown);
        match self.fault {
            Fault::DieBefore(at) if at == number => self.die(),
            Fault::Refuse(at) if at == number => return Err(refused),
            Fault::RefuseFrom(at) if at <= number => return Err(refused),
            Fault::None
            | Fault::Refuse(_)
            | Fault::RefuseFrom(_)
            | Fault::DieBefore(_)
            | Fault::DieAfter(_) => {}
        }
        let done = act(&self.root);
        if self.fault == Fault::DieAfter(number) {
            self.die();
        }
        done
    }
}

impl Writes for Kernel {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        let shown = write.path.strip_prefix(&self.root).unwrap().display().to_string();
        let text = write.text.trim().to_owned();
        self.step((shown, text), refused(EIO), |root| {
            SimulatedKernel::new(root.to_owned()).write(write)
        })
    }

    fn layout(&mut self, gpu: GpuUuid) -> Result<MigLayout, MigError> {
        match gpu == instances::gpu() {
            true => Ok(instances::layout(&self.root)),
            false => Err(MigError::UnknownGpu(gpu)),
        }
    }

    fn cut(&mut self, step: &MigStep) -> Result<(), MigError> {
        BEFORE_CUT.with(|hook| hook.borrow().iter().for_each(|act| act(&self.root)));
        let refused = MigError::Failed { step: *step, reason: "error 999".to_owned() };
        self.step(("nvml".to_owned(), step.to_string()), refused, |root| instances::cut(root, step))
    }
}
