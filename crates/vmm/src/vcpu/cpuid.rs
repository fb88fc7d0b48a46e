// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the CPUID instruction tells the guest: all that KVM supports on this host, with a topology of one package,
//! one thread a core, and with no performance counters.
//!
//! KVM fills the leaves from the host's CPU and adds its own paravirtual ones (0x4000_0000 and up: clock, asynchronous
//! page faults, steal time), which are kept. Leaf numbers and bits: Intel SDM volume 2, CPUID; AMD APM volume 3,
//! appendix E.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use crate::KvmError;
use crate::machine::failed_to;

/// Leaf 1, ECX: the local APIC's timer takes TSC deadlines. KVM does not report it although its APIC can.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: this is a guest.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has several logical processors.
const MULTI_THREADED: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the several logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x8000_0001, ECX: counters of AMD's core, north bridge and cache.
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
/// Extended topology, and its second version.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];
/// AMD's own extended topology, of the host. Without it kernels take leaf 0xb.
const AMD_TOPOLOGY: u32 = 0x8000_0026;

/// What KVM supports on this host.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed_to("say which CPUID it supports"))?;
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        for entry in cpuid.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= TSC_DEADLINE;
            }
        }
    }
    Ok(cpuid)
}

/// The CPUID of vCPU `index` of `count`, whose local APIC has the identifier `index`.
pub(crate) fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> Result<CpuId, KvmError> {
    let topology = Topology { index, count };
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|entry| !is_topology(entry.function) && !is_zero(entry))
        .copied()
        .collect();
    let leaf_0 = entries.iter().find(|entry| entry.function == 0).copied();
    let (is_amd, max_leaf) = leaf_0.map_or((false, 0), |leaf| (is_amd(&leaf), leaf.eax));
    for entry in &mut entries {
        topology.patch(entry, is_amd);
    }
    for leaf in TOPOLOGY_LEAVES {
        if leaf <= max_leaf {
            entries.extend(topology.extended(leaf));
        }
    }
    CpuId::from_entries(&entries).map_err(|_| KvmError {
        action: format!("hold {} CPUID entries", entries.len()),
        source: vmm_sys_util::errno::Error::new(libc::E2BIG),
    })
}

fn is_topology(leaf: u32) -> bool {
    TOPOLOGY_LEAVES.contains(&leaf) || leaf == AMD_TOPOLOGY
}

/// Whether an entry says what KVM says for one that is missing, and only takes room.
fn is_zero(entry: &kvm_cpuid_entry2) -> bool {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) == (0, 0, 0, 0)
}

/// "AuthenticAMD" or "HygonGenuine".
fn is_amd(leaf_0: &kvm_cpuid_entry2) -> bool {
    let vendor = [leaf_0.ebx, leaf_0.edx, leaf_0.ecx].map(u32::to_le_bytes);
    [*b"AuthenticAMD", *b"HygonGenuine"]
        .iter()
        .any(|name| name[..] == *vendor.as_flattened())
}

/// One vCPU in a package of cores.
#[derive(Debug, Clone, Copy)]
struct Topology {
    index: u8,
    count: u8,
}

impl Topology {
    fn patch(self, entry: &mut kvm_cpuid_entry2, is_amd: bool) {
        let (index, count) = (u32::from(self.index), u32::from(self.count));
        match entry.function {
            1 => {
                entry.ebx = set_bits(entry.ebx, 16..24, count);
                entry.ebx = set_bits(entry.ebx, 24..32, index);
                entry.ecx |= HYPERVISOR;
                entry.edx = set_flag(entry.edx, MULTI_THREADED, count > 1);
            }
            // Intel's caches, which end with an entry of type 0.
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = set_bits(entry.eax, 14..26, self.sharing(entry.eax) - 1);
                entry.eax = set_bits(entry.eax, 26..32, (count - 1).min(63));
            }
            // Performance counters: version 0 means that there are none.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 if is_amd => {
                entry.ecx = set_flag(entry.ecx, CMP_LEGACY, count > 1);
                entry.ecx &= !AMD_COUNTERS;
            }
            0x8000_0008 if is_amd => {
                entry.ecx = set_bits(entry.ecx, 0..8, count - 1);
                entry.ecx = set_bits(entry.ecx, 12..16, self.shift());
            }
            // AMD's caches, as Intel's.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                entry.eax = set_bits(entry.eax, 14..26, self.sharing(entry.eax) - 1);
            }
            // AMD's identifiers: APIC, core, node.
            0x8000_001e => {
                entry.eax = index;
                entry.ebx = index;
                entry.ecx = 0;
            }
            0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }

    /// How many bits of an APIC identifier number the cores of the package.
    fn shift(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    /// How many vCPUs share a cache: all of them the third level, none the others.
    fn sharing(self, cache: u32) -> u32 {
        let level = cache >> 5 & 0x7;
        if level >= 3 { 1 << self.shift() } else { 1 }
    }

    /// The three entries of an extended topology leaf: thread, core, end.
    fn extended(self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let entry = |level, shift, processors, kind: u32| kvm_cpuid_entry2 {
            function: leaf,
            index: level,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: level | kind << 8,
            edx: u32::from(self.index),
            ..Default::default()
        };
        [
            entry(0, 0, 1, THREAD),
            entry(1, self.shift(), u32::from(self.count), CORE),
            entry(2, 0, 0, 0),
        ]
    }
}

/// `word` with `value` in its `bits`, cut to their number.
fn set_bits(word: u32, bits: std::ops::Range<u32>, value: u32) -> u32 {
    let mask = ((1u64 << bits.end) - (1u64 << bits.start)) as u32;
    word & !mask | value << bits.start & mask
}

fn set_flag(word: u32, flag: u32, on: bool) -> u32 {
    if on { word | flag } else { word & !flag }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn vendor(name: &[u8; 12], max_leaf: u32) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        entry(0, 0, [max_leaf, word(0), word(8), word(4)])
    }

    fn patched(entries: &[kvm_cpuid_entry2], index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let supported = CpuId::from_entries(entries).unwrap();
        for_vcpu(&supported, index, count)
            .unwrap()
            .as_slice()
            .to_vec()
    }

    #[test]
    fn first_leaf_names_the_vcpu_and_the_hypervisor() {
        let host = entry(1, 0, [0x806f8, 0x2340_0800, 0, MULTI_THREADED]);

        let leaf = patched(&[host], 3, 4)[0];

        assert_eq!(leaf.ebx, 0x0304_0800);
        assert_eq!(leaf.ecx, HYPERVISOR);
        assert_eq!(leaf.edx, MULTI_THREADED);
    }

    #[test]
    fn lone_vcpu_is_not_multi_threaded() {
        let host = entry(1, 0, [0, 0, 0, MULTI_THREADED]);

        let leaf = patched(&[host], 0, 1)[0];

        assert_eq!((leaf.ebx, leaf.edx), (0x0001_0000, 0));
    }

    #[rstest]
    #[case::one(0, 1, 0)]
    #[case::two(1, 2, 1)]
    #[case::three(2, 3, 2)]
    #[case::all(254, 255, 8)]
    fn topology_leaf_counts_cores(#[case] index: u8, #[case] count: u8, #[case] shift: u32) {
        let host = [
            vendor(b"GenuineIntel", 0x1f),
            entry(0xb, 0, [1, 2, 0x100, 77]),
            entry(0xb, 1, [6, 64, 0x201, 77]),
        ];

        let leaves = patched(&host, index, count);

        let levels: Vec<_> = leaves
            .iter()
            .filter(|leaf| leaf.function == 0xb)
            .map(|leaf| (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
            .collect();
        let id = u32::from(index);
        assert_eq!(
            levels,
            [
                (0, 1, 0x100, id),
                (shift, u32::from(count), 0x201, id),
                (0, 0, 2, id)
            ]
        );
        let second_version = leaves.iter().filter(|leaf| leaf.function == 0x1f);
        assert_eq!(second_version.count(), 3);
    }

    #[test]
    fn topology_leaf_that_the_cpu_lacks_is_not_added() {
        let leaves = patched(&[vendor(b"AuthenticAMD", 0xa)], 0, 2);

        assert_eq!(leaves.len(), 1);
    }

    #[rstest]
    #[case::level_1(0x21, 0)]
    #[case::level_2(0x43, 0)]
    #[case::level_3(0x63, 3)]
    fn only_the_last_cache_is_shared(#[case] cache: u32, #[case] sharing: u32) {
        let host = [
            entry(4, 0, [cache | 0x3f << 14, 0, 0, 0]),
            entry(0x8000_001d, 0, [cache | 0x3f << 14, 0, 0, 0]),
        ];

        let leaves = patched(&host, 0, 3);

        assert_eq!(leaves[0].eax >> 14 & 0xfff, sharing);
        assert_eq!(leaves[0].eax >> 26, 2);
        assert_eq!(leaves[1].eax >> 14 & 0xfff, sharing);
    }

    #[test]
    fn topology_of_an_amd_host_is_not_shown() {
        let host = [
            vendor(b"AuthenticAMD", 0xd),
            entry(AMD_TOPOLOGY, 0, [1, 2, 0x100, 77]),
        ];

        let leaves = patched(&host, 0, 2);

        assert!(leaves.iter().all(|leaf| leaf.function != AMD_TOPOLOGY));
    }

    #[test]
    fn amd_counts_its_cores_and_names_them() {
        let host = [
            vendor(b"AuthenticAMD", 0xd),
            entry(0x8000_0001, 0, [0, 0, AMD_COUNTERS | 1, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x707f, 0]),
            entry(0x8000_001e, 0, [99, 99, 99, 0]),
        ];

        let leaves = patched(&host, 2, 3);

        assert_eq!(leaves[1].ecx, CMP_LEGACY | 1);
        assert_eq!(leaves[2].ecx, 0x2002);
        assert_eq!((leaves[3].eax, leaves[3].ebx, leaves[3].ecx), (2, 2, 0));
    }

    #[test]
    fn intel_keeps_what_only_amd_defines() {
        let host = [
            vendor(b"GenuineIntel", 0xa),
            entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
        ];

        let leaves = patched(&host, 1, 2);

        assert_eq!(leaves[1].ecx, 0);
    }

    #[test]
    fn there_are_no_performance_counters() {
        let leaves = patched(&[entry(0xa, 0, [0x0730_0402, 0, 0, 0x603])], 0, 1);

        assert_eq!((leaves[0].eax, leaves[0].edx), (0, 0));
    }

    #[test]
    fn paravirtual_leaves_are_kept() {
        let clock = entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]);

        assert_eq!(patched(&[clock], 0, 1), [clock]);
    }

    #[test]
    fn entry_without_a_bit_is_left_out() {
        assert_eq!(patched(&[entry(0x19, 0, [0; 4])], 0, 1), []);
    }

    #[test]
    fn more_entries_than_kvm_takes_are_refused() {
        let mut entries = vec![entry(7, 0, [1; 4]); KVM_MAX_CPUID_ENTRIES - 1];
        entries.push(vendor(b"GenuineIntel", 0x1f));
        let supported = CpuId::from_entries(&entries).unwrap();

        assert!(for_vcpu(&supported, 0, 1).is_err());
    }
}
