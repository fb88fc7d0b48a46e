// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The index of modules that are loaded only when something wants them: what `depmod` makes for `modprobe`, in one file and
//! only for what is there.
//!
//! ```text
//! virtio_net.ko<TAB>failover,net_failover<TAB>virtio:d00000001v*
//! ```
//!
//! A line is a module: its file in the index's directory, the modules that it depends on, and its aliases, separated by spaces;
//! the last are patterns, in which `*` stands for anything and `?` for one character. Modules that are depended on and not in the
//! index are loaded already, or built into the kernel.

use crate::modules::Module;

/// Name of the index.
pub const INDEX: &str = "index";

/// The index of `modules`.
#[must_use]
pub fn index(modules: &[Module]) -> String {
    modules
        .iter()
        .map(|module| {
            format!(
                "{}.ko\t{}\t{}\n",
                module.name,
                module.dependencies.join(","),
                module.aliases.join(" ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_is_a_line() {
        let module = |name: &str, dependencies: &[&str], aliases: &[&str]| Module {
            name: name.to_owned(),
            image: Vec::new(),
            dependencies: dependencies.iter().map(|&name| name.to_owned()).collect(),
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
        };

        let index = index(&[
            module("failover", &[], &[]),
            module(
                "virtio_net",
                &["failover", "virtio"],
                &["virtio:d00000001v*", "x"],
            ),
        ]);

        assert_eq!(
            index,
            "failover.ko\t\t\nvirtio_net.ko\tfailover,virtio\tvirtio:d00000001v* x\n"
        );
    }
}
