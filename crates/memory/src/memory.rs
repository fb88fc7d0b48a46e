// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All of a guest's memory: made in one go, shared by reference count, reached by (address, length).

use std::fs::File;
use std::mem::{MaybeUninit, size_of};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags};
use thiserror::Error;
use vm_memory::{FileOffset, GuestMemoryBackend, GuestRegionCollection};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::mapping::{HUGE_PAGE_SIZE, Mapping, PAGE_SIZE};
use crate::{AccessError, GuestAddress, GuestSlice, OwnedSlice, Region, Slices};

/// Guest memory as crates of the rust-vmm family take it: implements vm-memory's
/// `GuestMemoryBackend` (and so `GuestMemory` and `Bytes`).
pub type VmMemory = GuestRegionCollection<Region>;

/// Why guest memory could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The list of ranges is empty.
    #[error("guest memory without a single range")]
    NoRanges,
    /// A range has no bytes, or does not start and end on a page boundary.
    #[error("{len} bytes of guest memory at {start} are not whole pages of {PAGE_SIZE} bytes")]
    NotPages {
        /// Where the range starts.
        start: GuestAddress,
        /// Its length in bytes.
        len: u64,
    },
    /// A range reaches past the end of the address space.
    #[error("{len} bytes of guest memory at {start} reach past the address space")]
    TooLarge {
        /// Where the range starts.
        start: GuestAddress,
        /// Its length in bytes.
        len: u64,
    },
    /// A range starts before the end of the one before it.
    #[error("guest memory at {start} starts before {end}, the end of the range before it")]
    OutOfOrder {
        /// Where the range starts.
        start: GuestAddress,
        /// Where the range before it ends.
        end: GuestAddress,
    },
    /// The host did not map the memory.
    #[error("cannot map {len} bytes of guest memory")]
    Map {
        /// Length in bytes.
        len: u64,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The host did not make the file behind shared memory.
    #[error("cannot make a memory file of {len} bytes")]
    File {
        /// Length in bytes.
        len: u64,
        /// The host's reason.
        source: std::io::Error,
    },
}

/// All of a guest's memory. A clone is cheap, and the mappings live as long as the last clone.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Sorted by address, without overlaps.
    regions: Vec<Region>,
    vm_memory: VmMemory,
}

impl GuestMemory {
    /// Zeroed memory private to this process, on 2 MiB-aligned host addresses, with huge pages
    /// where the host has them. Host memory is used when it is first touched.
    ///
    /// `ranges` are (start, bytes), sorted; [`layout`](crate::layout) gives them.
    ///
    /// # Errors
    ///
    /// [`MemoryError`], if the ranges are not sorted whole pages or the host refuses.
    pub fn anonymous(ranges: &[(GuestAddress, u64)]) -> Result<Self, MemoryError> {
        let regions = check_ranges(ranges)?
            .into_iter()
            .map(|(start, len)| {
                let mapping = Mapping::anonymous(len).map_err(|source| MemoryError::Map {
                    len: len as u64,
                    source: source.into(),
                })?;
                Ok(Region::own(start, len, mapping, None))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self::new(regions))
    }

    /// Zeroed memory in one file without a name, which a process that gets its descriptor (a
    /// vhost-user backend) can map too; else as [`anonymous`](Self::anonymous).
    ///
    /// The file is sealed against a change of its size: a peer that shrank it would kill this
    /// process at its next access.
    ///
    /// # Errors
    ///
    /// [`MemoryError`], if the ranges are not sorted whole pages or the host refuses.
    pub fn shared(ranges: &[(GuestAddress, u64)]) -> Result<Self, MemoryError> {
        let ranges = check_ranges(ranges)?;
        let (offsets, file_len) = file_offsets(&ranges)?;
        let file = memory_file(file_len).map_err(|source| MemoryError::File {
            len: file_len,
            source: source.into(),
        })?;
        let file = Arc::new(file);
        let regions = ranges
            .into_iter()
            .zip(offsets)
            .map(|((start, len), offset)| {
                let mapping =
                    Mapping::shared(&*file, offset, len).map_err(|source| MemoryError::Map {
                        len: len as u64,
                        source: source.into(),
                    })?;
                let file = FileOffset::from_arc(Arc::clone(&file), offset);
                Ok(Region::own(start, len, mapping, Some(file)))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self::new(regions))
    }

    /// Memory that was mapped through vm-memory, as a vhost-user backend gets it from its
    /// frontend. The mappings live as long as either side needs them.
    #[must_use]
    pub fn from_vm_memory(memory: &vm_memory::GuestMemoryMmap<()>) -> Self {
        // vm-memory keeps regions sorted, without overlaps, and their ends inside 64 bits.
        Self::new(memory.iter().filter_map(Region::from_vm_memory).collect())
    }

    fn new(regions: Vec<Region>) -> Self {
        // Fails only for unsorted, overlapping or no regions; the empty collection is right for
        // the last, and the others were checked by the callers.
        let vm_memory = VmMemory::from_regions(regions.clone()).unwrap_or_default();
        Self {
            inner: Arc::new(Inner { regions, vm_memory }),
        }
    }

    /// The regions, sorted by address, without overlaps.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.inner.regions
    }

    /// Whether both are clones of the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The memory for crates that take vm-memory's traits, as linux-loader does.
    #[must_use]
    pub fn as_vm_memory(&self) -> &VmMemory {
        &self.inner.vm_memory
    }

    /// `len` bytes at `address`, inside one region. Even an empty range must start in memory.
    ///
    /// # Errors
    ///
    /// [`AccessError::SpansRegions`], [`AccessError::Unmapped`] or [`AccessError::Overflow`].
    pub fn slice(&self, address: GuestAddress, len: usize) -> Result<GuestSlice<'_>, AccessError> {
        if let Some(slice) = self.longest_slice(address, len)
            && slice.len() == len
        {
            return Ok(slice);
        }
        Err(self.why_not_one_slice(address, len))
    }

    /// As [`slice`](Self::slice), but holds on to the memory instead of borrowing it.
    ///
    /// # Errors
    ///
    /// As for [`slice`](Self::slice).
    pub fn owned_slice(
        &self,
        address: GuestAddress,
        len: usize,
    ) -> Result<OwnedSlice, AccessError> {
        let slice = self.slice(address, len)?;
        Ok(OwnedSlice::new(self, slice))
    }

    /// `len` bytes at `address`, over any number of regions that follow each other without a
    /// gap. The whole range is checked before the first slice is given.
    ///
    /// # Errors
    ///
    /// [`AccessError::Unmapped`] or [`AccessError::Overflow`].
    pub fn slices(&self, address: GuestAddress, len: usize) -> Result<Slices<'_>, AccessError> {
        self.check(address, len)?;
        Ok(Slices {
            memory: self,
            address,
            remaining: len,
        })
    }

    /// Whether all of `len` bytes at `address` are memory. Even an empty range must start in it.
    ///
    /// # Errors
    ///
    /// [`AccessError::Unmapped`] or [`AccessError::Overflow`].
    pub fn check(&self, address: GuestAddress, len: usize) -> Result<(), AccessError> {
        let overflow = AccessError::Overflow { address, len };
        let end = address.checked_add(len as u64).ok_or(overflow)?;
        let mut at = address;
        loop {
            let region = self.region_at(at).ok_or(AccessError::Unmapped {
                address,
                len,
                hole: at,
            })?;
            if region.end() >= end {
                return Ok(());
            }
            at = region.end();
        }
    }

    /// Copies the bytes at `address` into `buffer`, over any number of adjacent regions.
    ///
    /// # Errors
    ///
    /// [`AccessError`], and then nothing was copied.
    pub fn read(&self, address: GuestAddress, buffer: &mut [u8]) -> Result<(), AccessError> {
        let mut rest = buffer;
        for slice in self.slices(address, rest.len())? {
            let copied = slice.copy_to(rest);
            rest = &mut rest[copied..];
        }
        Ok(())
    }

    /// Copies `buffer` to `address`, over any number of adjacent regions.
    ///
    /// # Errors
    ///
    /// [`AccessError`], and then nothing was copied.
    pub fn write(&self, address: GuestAddress, buffer: &[u8]) -> Result<(), AccessError> {
        let mut rest = buffer;
        for slice in self.slices(address, rest.len())? {
            let copied = slice.copy_from(rest);
            rest = &rest[copied..];
        }
        Ok(())
    }

    /// Reads a plain value at `address`, over any number of adjacent regions.
    ///
    /// # Errors
    ///
    /// [`AccessError`], if not all of it is memory.
    pub fn read_obj<T: FromBytes>(&self, address: GuestAddress) -> Result<T, AccessError> {
        match self.slice(address, size_of::<T>()) {
            Ok(slice) => slice.read_obj(0),
            Err(AccessError::SpansRegions { .. }) => self.read_split_obj(address),
            Err(error) => Err(error),
        }
    }

    /// Writes a plain value at `address`, over any number of adjacent regions.
    ///
    /// # Errors
    ///
    /// [`AccessError`], and then nothing was written.
    pub fn write_obj<T: IntoBytes + Immutable>(
        &self,
        address: GuestAddress,
        value: &T,
    ) -> Result<(), AccessError> {
        self.write(address, value.as_bytes())
    }

    /// Reads 16 bits at `address` atomically; see [`GuestSlice::load_u16`].
    ///
    /// # Errors
    ///
    /// [`AccessError`], if it is no memory or not aligned.
    pub fn load_u16(&self, address: GuestAddress, order: Ordering) -> Result<u16, AccessError> {
        self.slice(address, size_of::<u16>())?.load_u16(0, order)
    }

    /// Reads 32 bits at `address` atomically; see [`GuestSlice::load_u32`].
    ///
    /// # Errors
    ///
    /// [`AccessError`], if it is no memory or not aligned.
    pub fn load_u32(&self, address: GuestAddress, order: Ordering) -> Result<u32, AccessError> {
        self.slice(address, size_of::<u32>())?.load_u32(0, order)
    }

    /// Writes 16 bits at `address` atomically; see [`GuestSlice::store_u16`].
    ///
    /// # Errors
    ///
    /// [`AccessError`], if it is no memory or not aligned.
    pub fn store_u16(
        &self,
        address: GuestAddress,
        value: u16,
        order: Ordering,
    ) -> Result<(), AccessError> {
        self.slice(address, size_of::<u16>())?
            .store_u16(0, value, order)
    }

    /// Writes 32 bits at `address` atomically; see [`GuestSlice::store_u32`].
    ///
    /// # Errors
    ///
    /// [`AccessError`], if it is no memory or not aligned.
    pub fn store_u32(
        &self,
        address: GuestAddress,
        value: u32,
        order: Ordering,
    ) -> Result<(), AccessError> {
        self.slice(address, size_of::<u32>())?
            .store_u32(0, value, order)
    }

    /// What of `len` bytes at `address` the region there holds: all, or up to its end.
    pub(crate) fn longest_slice(
        &self,
        address: GuestAddress,
        len: usize,
    ) -> Option<GuestSlice<'_>> {
        let region = self.region_at(address)?;
        let offset = usize::try_from(address.checked_offset_from(region.start())?).ok()?;
        let whole = region.as_slice();
        whole.sub(offset, len.min(whole.len() - offset))
    }

    fn region_at(&self, address: GuestAddress) -> Option<&Region> {
        // A guest has a handful of regions: a scan is faster than a search.
        self.inner
            .regions
            .iter()
            .find(|region| address < region.end())
            .filter(|region| address >= region.start())
    }

    #[cold]
    fn why_not_one_slice(&self, address: GuestAddress, len: usize) -> AccessError {
        match (self.check(address, len), self.region_at(address)) {
            (Err(error), _) => error,
            (Ok(()), Some(region)) => AccessError::SpansRegions {
                address,
                len,
                end: region.end(),
            },
            // Not reached: a range without a first region has failed the check.
            (Ok(()), None) => AccessError::Unmapped {
                address,
                len,
                hole: address,
            },
        }
    }

    #[cold]
    fn read_split_obj<T: FromBytes>(&self, address: GuestAddress) -> Result<T, AccessError> {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: `value` has size_of::<T>() bytes, all of them initialised, and nothing else
        // refers to it while `bytes` lives.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>())
        };
        self.read(address, bytes)?;
        // SAFETY: any bytes make a valid `T: FromBytes`.
        Ok(unsafe { value.assume_init() })
    }
}

/// The ranges with lengths that this host can map, or what is wrong with them.
fn check_ranges(ranges: &[(GuestAddress, u64)]) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
    if ranges.is_empty() {
        return Err(MemoryError::NoRanges);
    }
    let mut checked = Vec::with_capacity(ranges.len());
    let mut previous_end = GuestAddress(0);
    for &(start, len) in ranges {
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) || !start.is_aligned_to(PAGE_SIZE) {
            return Err(MemoryError::NotPages { start, len });
        }
        let too_large = || MemoryError::TooLarge { start, len };
        let end = start.checked_add(len).ok_or_else(too_large)?;
        // Rust's pointer arithmetic ends at isize::MAX.
        let host_len = isize::try_from(len)
            .map_err(|_| too_large())?
            .unsigned_abs();
        if start < previous_end {
            return Err(MemoryError::OutOfOrder {
                start,
                end: previous_end,
            });
        }
        checked.push((start, host_len));
        previous_end = end;
    }
    Ok(checked)
}

/// Where each range starts in the one file, on a huge page like its mapping, and the file's length.
fn file_offsets(ranges: &[(GuestAddress, usize)]) -> Result<(Vec<u64>, u64), MemoryError> {
    let mut offsets = Vec::with_capacity(ranges.len());
    let mut file_len = 0u64;
    for &(start, len) in ranges {
        let len = len as u64;
        offsets.push(file_len);
        file_len = len
            .checked_next_multiple_of(HUGE_PAGE_SIZE)
            .and_then(|len| file_len.checked_add(len))
            .ok_or(MemoryError::TooLarge { start, len })?;
    }
    Ok((offsets, file_len))
}

fn memory_file(len: u64) -> rustix::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("guest-memory", flags)?);
    rustix::fs::ftruncate(&file, len)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}
