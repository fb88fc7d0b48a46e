// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds kernel modules and what they depend on, and puts them in the order in which they load.
//!
//! The dependencies are read from the modules themselves, where the kernel's build wrote them. `modules.dep` would say the
//! same, but only `depmod` makes it, when a kernel's package is installed: one that was merely unpacked has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};
use thiserror::Error;

use crate::compression::{Compression, CompressionError};
use crate::slim::slim;

/// The modules that a guest cannot do without, where the kernel has them as modules: the transport, the console, the
/// source of entropy, the connection to the host and the file system of the containers.
pub const REQUIRED: [&str; 6] = [
    "virtio_mmio",
    "virtio_console",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
];

/// Drivers of devices that a guest may have: packed with the required ones, loaded where there is such a device.
pub const OF_DEVICES: [&str; 2] = ["virtio_net", "virtio_blk"];

/// What containers may want of a kernel that has it as modules: file systems of disks, networks in networks, packet filters.
/// A `*` at the end stands for any rest.
pub const OF_WORKLOADS: [&str; 42] = [
    "ext4",
    "xfs",
    "erofs",
    "btrfs",
    "squashfs",
    "isofs",
    "vfat",
    "overlay",
    "cuse",
    "loop",
    "tun",
    "tap",
    "veth",
    "dummy",
    "bridge",
    "br_netfilter",
    "macvlan",
    "macvtap",
    "ipvlan",
    "8021q",
    "vxlan",
    "vrf",
    "wireguard",
    "nf_tables",
    "nft_*",
    "nf_conntrack*",
    "nf_nat*",
    "nf_log*",
    "nf_reject*",
    "nfnetlink*",
    "x_tables",
    "xt_*",
    "ip_tables",
    "iptable_*",
    "ipt_*",
    "ip6_tables",
    "ip6table_*",
    "ip6t_*",
    "ip_set*",
    "arp_tables",
    "sch_*",
    "inet_diag",
];

/// The largest module that is taken. The largest of a distribution have about 10 MiB.
const MODULE_MAX: usize = 64 << 20;

/// A module, not compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name as the kernel spells it, with `_` for `-`.
    pub name: String,
    /// Its ELF file, without what [`slim`] takes out.
    pub image: Vec<u8>,
    /// The modules that it cannot do without.
    pub dependencies: Vec<String>,
    /// What it is asked for by, other than its name: patterns for devices, file systems and the like.
    pub aliases: Vec<String>,
}

/// What a module says of itself.
struct Information {
    dependencies: Vec<String>,
    aliases: Vec<String>,
    /// What it does better with.
    soft_dependencies: Vec<String>,
}

/// The modules of one kernel: a directory such as `/lib/modules/6.1.0-amd64`.
#[derive(Debug)]
pub struct ModuleTree {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// Why modules could not be collected.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// A file or directory of the tree cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such module, and it is not built into the kernel.
    #[error("module {name}{} is neither below {root} nor built into the kernel", .needed_by.as_ref().map(|by| format!(", which {by} needs,")).unwrap_or_default())]
    Missing {
        /// The module's name.
        name: String,
        /// The module that depends on it, if it was not asked for by itself.
        needed_by: Option<String>,
        /// The directory of the modules.
        root: PathBuf,
    },
    /// A compressed module is damaged or too large.
    #[error("cannot decompress module {path}")]
    Compression {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        source: CompressionError,
    },
    /// A module is no ELF file.
    #[error("module {path} is not a kernel module")]
    NotModule {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        source: object::Error,
    },
}

impl ModuleTree {
    /// Lists the modules below `root`.
    ///
    /// # Errors
    ///
    /// [`ModuleError::Read`]: `root` has no `modules.builtin`, or something below it cannot be read.
    pub fn open(root: &Path) -> Result<Self, ModuleError> {
        let list = root.join("modules.builtin");
        let builtin = fs::read_to_string(&list)
            .map_err(|source| ModuleError::Read { path: list, source })?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        // What an administrator added goes before what came with the kernel, as for depmod.
        for directory in ["kernel", "extra", "updates"] {
            let directory = root.join(directory);
            if directory.is_dir() {
                collect(&directory, &mut files)?;
            }
        }
        Ok(Self {
            root: root.to_owned(),
            files,
            builtin,
        })
    }

    /// The modules of `names` and all that they depend on, each once and after what it depends on. What is built into the
    /// kernel is left out.
    ///
    /// # Errors
    ///
    /// [`ModuleError`] names the module that is missing or cannot be used.
    pub fn resolve<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Module>, ModuleError> {
        let mut walk = Walk::default();
        for name in names {
            self.visit(&canonical(name), None, &mut walk)?;
        }
        Ok(walk.order)
    }

    /// As [`Self::resolve`], of those that the kernel has, by patterns that may end in a `*`; with what they do better with.
    /// Those of `without` are left out.
    ///
    /// # Errors
    ///
    /// [`ModuleError`] names the module that cannot be used.
    pub fn resolve_present(
        &self,
        patterns: &[&str],
        without: &[Module],
    ) -> Result<Vec<Module>, ModuleError> {
        let mut walk = Walk {
            seen: without.iter().map(|module| module.name.clone()).collect(),
            with_soft_dependencies: true,
            ..Walk::default()
        };
        for pattern in patterns {
            let pattern = canonical(pattern);
            let fits = |name: &str| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            };
            for name in self.files.keys().filter(|name| fits(name)) {
                self.visit(name, None, &mut walk)?;
            }
        }
        Ok(walk.order)
    }

    fn visit(
        &self,
        name: &str,
        needed_by: Option<&str>,
        walk: &mut Walk,
    ) -> Result<(), ModuleError> {
        if self.builtin.contains(name) || !walk.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| ModuleError::Missing {
            name: name.to_owned(),
            needed_by: needed_by.map(str::to_owned),
            root: self.root.clone(),
        })?;
        let mut image = read(path)?;
        let information = slim(&mut image)
            .and_then(|()| information(&image))
            .map_err(|source| ModuleError::NotModule {
                path: path.clone(),
                source,
            })?;
        // No deeper than there are modules, since each is visited once.
        for dependency in &information.dependencies {
            self.visit(dependency, Some(name), walk)?;
        }
        walk.order.push(Module {
            name: name.to_owned(),
            image,
            dependencies: information.dependencies,
            aliases: information.aliases,
        });
        for dependency in &information.soft_dependencies {
            if walk.with_soft_dependencies && self.files.contains_key(dependency) {
                self.visit(dependency, Some(name), walk)?;
            }
        }
        Ok(())
    }
}

/// What has been found on the way through dependencies.
#[derive(Default)]
struct Walk {
    seen: BTreeSet<String>,
    order: Vec<Module>,
    with_soft_dependencies: bool,
}

/// Adds the modules of `directory` and its subdirectories. Symbolic links are left alone: `build` and `source` lead out.
fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let read_error = |source| ModuleError::Read {
        path: directory.to_owned(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(read_error)? {
        let entry = entry.map_err(read_error)?;
        let kind = entry.file_type().map_err(read_error)?;
        let path = entry.path();
        if kind.is_dir() {
            collect(&path, files)?;
        } else if kind.is_file()
            && let Some(name) = module_name(&path)
        {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The name of the module in the file at `path`; `None` if it holds none.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(canonical(stem))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let data = fs::read(path).map_err(|source| ModuleError::Read {
        path: path.to_owned(),
        source,
    })?;
    match Compression::detect(&data) {
        None => Ok(data),
        Some(compression) => {
            compression
                .decompress(&data, MODULE_MAX)
                .map_err(|source| ModuleError::Compression {
                    path: path.to_owned(),
                    source,
                })
        }
    }
}

/// What the module in `image` says of itself.
fn information(image: &[u8]) -> Result<Information, object::Error> {
    let file = object::File::parse(image)?;
    let modinfo = match file.section_by_name(".modinfo") {
        Some(section) => section.data()?,
        None => &[],
    };
    let soft = |word: &String| !matches!(word.as_str(), "pre:" | "post:");
    Ok(Information {
        dependencies: values(modinfo, "depends=", ',')
            .map(|name| canonical(&name))
            .collect(),
        // In the index a space ends an alias; none has one in it.
        aliases: values(modinfo, "alias=", ' ').collect(),
        soft_dependencies: values(modinfo, "softdep=", ' ')
            .filter(soft)
            .map(|name| canonical(&name))
            .collect(),
    })
}

/// The values of a field, `depends=a,b` for example, in the NUL-separated fields of a `.modinfo` section.
fn values<'m>(
    modinfo: &'m [u8],
    field: &'m str,
    separator: char,
) -> impl Iterator<Item = String> + 'm {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(move |entry| entry.strip_prefix(field.as_bytes()))
        .flat_map(move |list| {
            let list = String::from_utf8_lossy(list).into_owned();
            let values: Vec<_> = list
                .split(separator)
                .filter(|value| !value.is_empty() && !value.contains(char::is_control))
                .map(str::to_owned)
                .collect();
            values
        })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::tests_support::{module_image, module_image_with, signed};

    /// A tree with the given modules (path, dependencies) and `crc32.ko` built in.
    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join("modules.builtin"),
            "kernel/lib/crc32.ko\n",
        )
        .unwrap();
        for (path, depends) in modules {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module_image(depends)).unwrap();
        }
        directory
    }

    fn resolve(directory: &tempfile::TempDir, names: &[&str]) -> Result<Vec<String>, ModuleError> {
        let modules = ModuleTree::open(directory.path())?.resolve(names.iter().copied())?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn module_comes_after_what_it_depends_on_and_once() {
        let tree = tree(&[
            ("kernel/virtio/virtio.ko", ""),
            ("kernel/virtio/virtio_ring.ko", "virtio"),
            ("kernel/virtio/virtio_mmio.ko", "virtio_ring,virtio"),
            ("kernel/hw/virtio-rng.ko", "virtio-ring,virtio"),
        ]);

        let order = resolve(&tree, &["virtio_rng", "virtio-mmio", "virtio_rng"]).unwrap();

        assert_eq!(
            order,
            ["virtio", "virtio_ring", "virtio_rng", "virtio_mmio"]
        );
    }

    #[test]
    fn builtin_is_left_out() {
        let tree = tree(&[("kernel/fs/erofs.ko", "crc32")]);

        assert_eq!(resolve(&tree, &["erofs", "crc32"]).unwrap(), ["erofs"]);
    }

    #[test]
    fn module_says_what_it_depends_on_and_is_asked_for_by() {
        let tree = tree(&[("kernel/failover.ko", "")]);
        let fields = "depends=failover,crc32\0alias=virtio:d00000001v*\0alias=net-x";
        fs::write(
            tree.path().join("kernel/virtio_net.ko"),
            module_image_with(fields),
        )
        .unwrap();

        let modules = ModuleTree::open(tree.path())
            .unwrap()
            .resolve(["virtio_net"])
            .unwrap();

        assert_eq!(modules[1].dependencies, ["failover", "crc32"]);
        assert_eq!(modules[1].aliases, ["virtio:d00000001v*", "net-x"]);
    }

    #[test]
    fn present_modules_come_with_what_they_do_better_with() {
        let tree = tree(&[
            ("kernel/xt_mark.ko", "x_tables"),
            ("kernel/x_tables.ko", ""),
            ("kernel/crc32c_intel.ko", ""),
            ("kernel/veth.ko", ""),
        ]);
        let fields = "softdep=pre: crc32c-intel post: nowhere";
        fs::write(
            tree.path().join("kernel/ext4.ko"),
            module_image_with(fields),
        )
        .unwrap();
        let modules = ModuleTree::open(tree.path()).unwrap();
        let without = modules.resolve(["x_tables"]).unwrap();

        let present = modules
            .resolve_present(&["ext4", "zfs", "xt_*"], &without)
            .unwrap();

        let names: Vec<_> = present.into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["ext4", "crc32c_intel", "xt_mark"]);
    }

    #[test]
    fn modules_that_depend_on_each_other_end() {
        let tree = tree(&[("kernel/a.ko", "b"), ("kernel/b.ko", "a")]);

        assert_eq!(resolve(&tree, &["a"]).unwrap(), ["b", "a"]);
    }

    #[rstest]
    #[case("zfs", "module zfs is neither below ")]
    #[case("a", "module b, which a needs, is neither below ")]
    fn missing_module_is_named(#[case] name: &str, #[case] message: &str) {
        let tree = tree(&[("kernel/a.ko", "b")]);

        let error = resolve(&tree, &[name]).unwrap_err();

        assert!(error.to_string().starts_with(message), "{error}");
    }

    #[test]
    fn updated_module_goes_before_the_kernels() {
        let tree = tree(&[
            ("kernel/a.ko", ""),
            ("updates/a.ko", "b"),
            ("kernel/b.ko", ""),
        ]);

        assert_eq!(resolve(&tree, &["a"]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn compressed_module_is_decompressed() {
        let tree = tree(&[]);
        let file = tree.path().join("kernel/a.ko.xz");
        fs::create_dir(tree.path().join("kernel")).unwrap();
        fs::write(file, include_bytes!("../tests/data/module.ko.xz")).unwrap();

        let modules = ModuleTree::open(tree.path())
            .unwrap()
            .resolve(["a"])
            .unwrap();

        assert_eq!(modules[0].image, module_image(""));
    }

    #[test]
    fn module_comes_without_its_signature() {
        let tree = tree(&[("kernel/a.ko", "")]);
        let file = tree.path().join("kernel/a.ko");
        fs::write(file, signed(&module_image(""), 400, 400)).unwrap();

        let modules = ModuleTree::open(tree.path())
            .unwrap()
            .resolve(["a"])
            .unwrap();

        assert_eq!(modules[0].image, module_image(""));
    }

    #[test]
    fn file_that_is_no_module_is_named() {
        let tree = tree(&[]);
        fs::create_dir(tree.path().join("kernel")).unwrap();
        fs::write(tree.path().join("kernel/a.ko"), "text").unwrap();

        let error = resolve(&tree, &["a"]).unwrap_err();

        assert!(
            error.to_string().ends_with("a.ko is not a kernel module"),
            "{error}"
        );
    }

    #[test]
    fn directory_without_modules_is_refused() {
        let directory = tempfile::tempdir().unwrap();

        let error = ModuleTree::open(directory.path()).unwrap_err();

        assert!(error.to_string().ends_with("modules.builtin"), "{error}");
    }
}
