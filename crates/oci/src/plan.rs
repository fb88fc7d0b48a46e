// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is to be built for a container to run, decided before anything is: the virtual machine's
//! shape, what of the host it sees, and what runs in it. A plan is a value that prints and
//! compares; carrying it out is for others.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::disk::Disk;
use crate::image::ImageConfig;
use crate::spec::{self, Bind, Container, Overrides, SpecError};
use crate::user::User;
use crate::volume::Volume;

/// Least memory of a virtual machine: below, a stock kernel and its initial file system do not
/// start.
pub const MINIMUM_MEMORY_MIB: u64 = 96;
/// Most memory that is taken for meant.
pub const MAXIMUM_MEMORY_MIB: u64 = 16 << 20;
/// Most volumes of a container.
const VOLUME_LIMIT: usize = 256;
/// Most disks of a virtual machine.
const DISK_LIMIT: usize = 16;
/// Where the guest finds disks.
const DISKS: &str = "/dev/disk/by-id";
/// Given to every kernel: a panic ends the machine, which is then reported.
const KERNEL_ARGUMENTS: [&str; 1] = ["panic=-1"];

/// A virtual machine's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmShape {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u64,
}

/// Everything that a run of one container takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// The container's name.
    pub id: String,
    /// The virtual machine's size.
    pub vm: VmShape,
    /// Words for the kernel command line, beside those that the machine needs.
    pub kernel_arguments: Vec<String>,
    /// The writable root file system, on the host.
    pub rootfs: Overlay,
    /// Volumes, on the host, in the order in which they are mounted.
    pub volumes: Vec<SharedVolume>,
    /// Disks.
    pub disks: Vec<VirtualDisk>,
    /// Disks that other processes serve.
    #[serde(default)]
    pub served_disks: Vec<ServedDisk>,
    /// What runs in the guest.
    pub spec: Spec,
}

/// A writable layer over an unpacked image; all paths are the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The image's tree, which is only read.
    pub lower: PathBuf,
    /// What the container writes.
    pub upper: PathBuf,
    /// Overlayfs's own, on the same file system.
    pub work: PathBuf,
    /// Where to mount it: the directory `rootfs` of the share.
    pub mount_point: PathBuf,
}

/// A volume in the share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedVolume {
    /// The host's file or directory.
    pub source: PathBuf,
    /// Where to mount it: `volumes/<n>` of the share.
    pub mount_point: PathBuf,
    /// Whether the host must not let the guest write to it.
    pub read_only: bool,
}

/// A disk of the virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualDisk {
    /// The host's file or block device.
    pub source: PathBuf,
    /// What the guest finds it by.
    pub serial: String,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A disk that another process serves over vhost-user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedDisk {
    /// The Unix socket of that process.
    pub socket: PathBuf,
    /// What the guest finds it by, which has nothing to do with what that process says: a name in `/dev/disk/by-id`.
    pub name: String,
}

/// Where things are, on the host and in the guest.
#[derive(Clone, Copy, Debug)]
pub struct Places<'p> {
    /// The image's tree, on the host.
    pub lower: &'p Path,
    /// The writable layer's directory, on the host.
    pub upper: &'p Path,
    /// Overlayfs's own directory, on the host.
    pub work: &'p Path,
    /// The directory that the guest sees, on the host.
    pub share: &'p Path,
    /// The same directory, in the guest.
    pub guest_share: &'p Path,
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// The container's name.
    pub id: &'r str,
    /// The virtual machine's size.
    pub vm: VmShape,
    /// The image's config; an empty one for a bare tree.
    pub config: &'r ImageConfig,
    /// What the user wants otherwise.
    pub overrides: &'r Overrides,
    /// Whom the container runs as.
    pub user: &'r User,
    /// Files and directories of the host that the container sees.
    pub volumes: &'r [Volume],
    /// Raw disks that it sees.
    pub disks: &'r [Disk],
    /// Disks that other processes serve, each with its name in the guest's `/dev/disk/by-id`; the source is the socket.
    pub served_disks: &'r [(Disk, String)],
    /// Where things are.
    pub places: Places<'r>,
}

/// A container for which there is no plan.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// No CPU.
    #[error("a virtual machine needs at least one virtual CPU")]
    NoCpu,
    /// Too little memory to start, or more than any host has.
    #[error(
        "{memory_mib} MiB are not a virtual machine's memory: it takes {MINIMUM_MEMORY_MIB} to {MAXIMUM_MEMORY_MIB}"
    )]
    Memory {
        /// What was asked for, in MiB.
        memory_mib: u64,
    },
    /// Two volumes at one place.
    #[error("two volumes or disks have the destination {}", .0.display())]
    SameDestination(PathBuf),
    /// More volumes than are handled.
    #[error("{0} volumes are too many: the limit is {VOLUME_LIMIT}")]
    TooManyVolumes(usize),
    /// More disks than are handled.
    #[error("{0} disks are too many: the limit is {DISK_LIMIT}")]
    TooManyDisks(usize),
    /// The container itself cannot be.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl VmShape {
    fn check(self) -> Result<(), PlanError> {
        if self.vcpus == 0 {
            return Err(PlanError::NoCpu);
        }
        if !(MINIMUM_MEMORY_MIB..=MAXIMUM_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(PlanError::Memory {
                memory_mib: self.memory_mib,
            });
        }
        Ok(())
    }
}

impl SandboxPlan {
    /// Decides on everything.
    ///
    /// # Errors
    /// Where the machine could not start, volumes are at odds, or the container has no command or
    /// wishes that cannot be honoured.
    pub fn new(request: Request<'_>) -> Result<Self, PlanError> {
        request.vm.check()?;
        require_different_destinations(&request)?;
        let Places {
            lower,
            upper,
            work,
            share,
            guest_share,
        } = request.places;
        let numbered = || {
            request
                .volumes
                .iter()
                .enumerate()
                .map(|(index, volume)| (volume_place(index), volume))
        };
        let disks = || (0..).map(serial).zip(request.disks);
        let named = disks().map(|(serial, disk)| (link_of(&serial), disk));
        let served = || request.served_disks.iter();
        let named = named.chain(served().map(|(disk, name)| (name.clone(), disk)));
        let disk_binds = named.map(|(name, disk)| Bind {
            source: Path::new(DISKS).join(name),
            destination: disk.destination.clone(),
            read_only: disk.read_only,
            file_system: (!disk.is_device()).then(|| {
                disk.file_system
                    .clone()
                    .unwrap_or_else(|| "auto".to_owned())
            }),
        });
        let binds: Vec<Bind> = numbered()
            .map(|(place, volume)| Bind {
                source: guest_share.join(place),
                destination: volume.destination.clone(),
                read_only: volume.read_only,
                file_system: None,
            })
            .chain(disk_binds)
            .collect();
        let volumes = numbered()
            .map(|(place, volume)| SharedVolume {
                source: volume.source.clone(),
                mount_point: share.join(place),
                read_only: volume.read_only,
            })
            .collect();
        let spec = spec::build(Container {
            config: request.config,
            overrides: request.overrides,
            user: request.user,
            root: &guest_share.join("rootfs"),
            binds: &binds,
        })?;
        Ok(Self {
            id: request.id.to_owned(),
            vm: request.vm,
            kernel_arguments: KERNEL_ARGUMENTS.map(str::to_owned).into(),
            rootfs: Overlay {
                lower: lower.to_owned(),
                upper: upper.to_owned(),
                work: work.to_owned(),
                mount_point: share.join("rootfs"),
            },
            volumes,
            disks: disks()
                .map(|(serial, disk)| VirtualDisk {
                    source: disk.source.clone(),
                    serial,
                    read_only: disk.read_only,
                })
                .collect(),
            served_disks: served()
                .map(|(disk, name)| ServedDisk {
                    socket: disk.source.clone(),
                    name: name.clone(),
                })
                .collect(),
            spec,
        })
    }
}

impl SandboxPlan {
    /// What of the host the guest finds at `path`, which a mount of the specification has as its source; nothing if that is
    /// the guest's own.
    #[must_use]
    pub fn host_source(&self, path: &Path) -> Option<&Path> {
        let volume = self.volume_at(path).map(|volume| &volume.source);
        let name = path.strip_prefix(DISKS).ok();
        let is_disk = |disk: &&VirtualDisk| name == Some(Path::new(&link_of(&disk.serial)));
        let is_served = |disk: &&ServedDisk| name == Some(Path::new(&disk.name));
        volume
            .or_else(|| Some(&self.disks.iter().find(is_disk)?.source))
            .or_else(|| Some(&self.served_disks.iter().find(is_served)?.socket))
            .map(PathBuf::as_path)
    }

    /// The volume that the guest finds at `path`, if it is one.
    #[must_use]
    pub fn volume_at(&self, path: &Path) -> Option<&SharedVolume> {
        let mut volumes = (0..).zip(&self.volumes);
        let found = volumes.find(|(number, _)| path.ends_with(volume_place(*number)));
        found.map(|(_, volume)| volume)
    }
}

/// Where in the share the volume of this number is.
fn volume_place(number: usize) -> String {
    format!("volumes/{number}")
}

/// The guest's name for the disk of this serial number.
fn link_of(serial: &str) -> String {
    format!("virtio-{serial}")
}

/// The serial number of the disk at this place.
fn serial(place: usize) -> String {
    format!("disk{place}")
}

/// As indented JSON.
impl fmt::Display for SandboxPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Paths that are not Unicode have no form in JSON.
        let json = serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

/// From what it displays as.
impl FromStr for SandboxPlan {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn require_different_destinations(request: &Request<'_>) -> Result<(), PlanError> {
    let volumes = request.volumes;
    if volumes.len() > VOLUME_LIMIT {
        return Err(PlanError::TooManyVolumes(volumes.len()));
    }
    let served = request.served_disks.iter().map(|(disk, _)| disk);
    let disks: Vec<&Disk> = request.disks.iter().chain(served).collect();
    if disks.len() > DISK_LIMIT {
        return Err(PlanError::TooManyDisks(disks.len()));
    }
    let mut seen = BTreeSet::new();
    let destinations = volumes.iter().map(|volume| &volume.destination);
    match destinations
        .chain(disks.iter().map(|disk| &disk.destination))
        .find(|destination| !seen.insert(*destination))
    {
        Some(destination) => Err(PlanError::SameDestination(destination.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PLACES: [&str; 5] = [
        "/store/rootfs",
        "/run/1/upper",
        "/run/1/work",
        "/run/1/share",
        "/run/guest/share",
    ];

    fn plan(vm: VmShape, volumes: &[&str]) -> Result<SandboxPlan, PlanError> {
        plan_with_disks(vm, volumes, &[])
    }

    fn plan_with_disks(
        vm: VmShape,
        volumes: &[&str],
        disks: &[&str],
    ) -> Result<SandboxPlan, PlanError> {
        let volumes: Vec<Volume> = volumes.iter().map(|text| text.parse().unwrap()).collect();
        let disks: Vec<Disk> = disks.iter().map(|text| text.parse().unwrap()).collect();
        let [lower, upper, work, share, guest_share] = PLACES.map(Path::new);
        SandboxPlan::new(Request {
            id: "one",
            vm,
            config: &ImageConfig::default(),
            overrides: &Overrides {
                command: vec!["true".into()],
                ..Overrides::default()
            },
            user: &User::default(),
            volumes: &volumes,
            disks: &disks,
            served_disks: &[],
            places: Places {
                lower,
                upper,
                work,
                share,
                guest_share,
            },
        })
    }

    const SMALL: VmShape = VmShape {
        vcpus: 1,
        memory_mib: 256,
    };

    #[test]
    fn sources_in_the_guest_are_told_by_those_of_the_host() {
        let plan = plan_with_disks(SMALL, &["/data:/mnt", "/other:/srv"], &["/image:/disk"]);

        let plan = plan.unwrap();
        let found = ["/mnt", "/srv", "/disk", "/dev"].map(|destination| {
            let mut mounts = plan.spec.mounts().iter().flatten();
            let mount = mounts.find(|mount| mount.destination() == Path::new(destination));
            let source = mount.unwrap().source().as_deref().unwrap();
            plan.host_source(source)
        });

        let expected = [Some("/data"), Some("/other"), Some("/image"), None];
        assert_eq!(found, expected.map(|path| path.map(Path::new)));
    }

    #[test]
    fn volume_is_shared_on_the_host_and_bound_in_the_guest() {
        let plan = plan(SMALL, &["/data:/mnt:ro", "/other:/srv"]).unwrap();

        let shared = SharedVolume {
            source: "/data".into(),
            mount_point: "/run/1/share/volumes/0".into(),
            read_only: true,
        };
        assert_eq!(plan.volumes[0], shared);
        let mounts = plan.spec.mounts().as_ref().unwrap();
        let bound = mounts
            .iter()
            .find(|mount| mount.destination() == Path::new("/srv"))
            .unwrap();
        assert_eq!(
            bound.source().as_deref(),
            Some(Path::new("/run/guest/share/volumes/1"))
        );
    }

    #[test]
    fn root_is_an_overlay_in_the_share() {
        let plan = plan(SMALL, &[]).unwrap();

        assert_eq!(plan.rootfs.mount_point, Path::new("/run/1/share/rootfs"));
        assert_eq!(
            plan.spec.root().as_ref().unwrap().path(),
            Path::new("/run/guest/share/rootfs")
        );
    }

    #[test]
    fn plan_survives_its_text() {
        let plan = plan(SMALL, &["/data:/mnt:ro"]).unwrap();

        let text = plan.to_string();

        assert_eq!(text.parse::<SandboxPlan>().unwrap(), plan);
    }

    #[rstest]
    #[case::no_cpu(0, 256, PlanError::NoCpu)]
    #[case::no_memory(1, 0, PlanError::Memory { memory_mib: 0 })]
    #[case::little_memory(1, MINIMUM_MEMORY_MIB - 1, PlanError::Memory { memory_mib: MINIMUM_MEMORY_MIB - 1 })]
    #[case::absurd_memory(1, u64::MAX, PlanError::Memory { memory_mib: u64::MAX })]
    fn impossible_machine_is_refused(
        #[case] vcpus: u8,
        #[case] memory_mib: u64,
        #[case] expected: PlanError,
    ) {
        assert_eq!(plan(VmShape { vcpus, memory_mib }, &[]), Err(expected));
    }

    #[test]
    fn two_volumes_at_one_place_are_refused() {
        let found = plan(SMALL, &["/a:/mnt", "/b:/mnt/"]);

        assert_eq!(found, Err(PlanError::SameDestination("/mnt".into())));
    }

    #[test]
    fn disk_is_mounted_and_device_is_bound() {
        let plan = plan_with_disks(SMALL, &[], &["/a.img:/data:ro", "/b.img:/dev/xvdb"]).unwrap();

        let serials: Vec<_> = plan.disks.iter().map(|disk| disk.serial.as_str()).collect();
        assert_eq!(serials, ["disk0", "disk1"]);
        let mounts = plan.spec.mounts().as_ref().unwrap();
        let of = |path: &str| {
            let mount = mounts
                .iter()
                .find(|mount| mount.destination() == Path::new(path));
            let mount = mount.unwrap();
            (
                mount.typ().clone().unwrap(),
                mount.source().clone().unwrap(),
            )
        };
        assert_eq!(
            of("/data"),
            ("auto".into(), "/dev/disk/by-id/virtio-disk0".into())
        );
        assert_eq!(
            of("/dev/xvdb"),
            ("bind".into(), "/dev/disk/by-id/virtio-disk1".into())
        );
    }

    #[test]
    fn disk_at_the_place_of_a_volume_is_refused() {
        let found = plan_with_disks(SMALL, &["/a:/mnt"], &["/b.img:/mnt"]);

        assert_eq!(found, Err(PlanError::SameDestination("/mnt".into())));
    }
}
