// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One contiguous range of guest memory and the host mapping behind it.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{
    FileOffset, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, MmapRegion, VolatileSlice,
};

use crate::mapping::Mapping;
use crate::{GuestAddress, GuestSlice};

/// A contiguous range of guest-physical addresses and the host memory behind it.
///
/// A clone is cheap and keeps the mapping alive.
#[derive(Clone, Debug)]
pub struct Region {
    start: GuestAddress,
    len: usize,
    host: NonNull<u8>,
    file: Option<FileOffset>,
    _backing: Backing,
}

/// What unmaps the memory once the last region that uses it is gone.
#[derive(Clone, Debug)]
enum Backing {
    Own { _mapping: Arc<Mapping> },
    VmMemory { _region: Arc<MmapRegion<()>> },
}

// SAFETY: `host` points into memory that belongs to the process and that `_backing` keeps mapped
// wherever the region goes; it is reached through raw copies and atomics alone.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `len` bytes, all of `mapping`. The caller has checked that `start + len`
    /// is an address.
    pub(crate) fn own(
        start: GuestAddress,
        len: usize,
        mapping: Mapping,
        file: Option<FileOffset>,
    ) -> Self {
        Self {
            start,
            len,
            host: mapping.start(),
            file,
            _backing: Backing::Own {
                _mapping: Arc::new(mapping),
            },
        }
    }

    /// A region that somebody mapped through vm-memory; `None` for an empty one.
    pub(crate) fn from_vm_memory(region: &vm_memory::GuestRegionMmap<()>) -> Option<Self> {
        let mapping = region.get_mmap();
        let len = mapping.size();
        (len > 0).then_some(())?;
        Some(Self {
            start: region.start_addr().into(),
            len,
            host: NonNull::new(mapping.as_ptr())?,
            file: region.file_offset().cloned(),
            _backing: Backing::VmMemory { _region: mapping },
        })
    }

    /// The guest-physical address of the first byte.
    #[must_use]
    pub const fn start(&self) -> GuestAddress {
        self.start
    }

    /// Length in bytes, never 0.
    #[expect(clippy::len_without_is_empty, reason = "no region is empty")]
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len as u64
    }

    /// The guest-physical address just past the last byte.
    #[must_use]
    pub const fn end(&self) -> GuestAddress {
        // Cannot wrap: checked when the region was made.
        GuestAddress(self.start.0 + self.len as u64)
    }

    /// The host address of the first byte: what KVM and vhost-user are told. The guest changes
    /// what is there at any time: do not make a reference of it.
    #[must_use]
    pub const fn host_address(&self) -> *mut u8 {
        self.host.as_ptr()
    }

    /// The file that backs the region, and the offset in bytes where the region starts in it;
    /// `None` for private memory.
    #[must_use]
    pub fn file(&self) -> Option<(&File, u64)> {
        self.file.as_ref().map(|file| (file.file(), file.start()))
    }

    /// All of the region.
    #[must_use]
    pub fn as_slice(&self) -> GuestSlice<'_> {
        // SAFETY: `_backing` keeps these bytes mapped readable and writable while `self` lives.
        unsafe { GuestSlice::new(self.host, self.len) }
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len as GuestUsize
    }

    fn start_addr(&self) -> vm_memory::GuestAddress {
        self.start.into()
    }

    fn bitmap(&self) {}

    fn get_host_address(
        &self,
        address: MemoryRegionAddress,
    ) -> vm_memory::GuestMemoryResult<*mut u8> {
        Ok(self.get_slice(address, 1)?.ptr_guard_mut().as_ptr())
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> vm_memory::GuestMemoryResult<VolatileSlice<'_>> {
        let part = usize::try_from(offset.0)
            .ok()
            .and_then(|offset| self.as_slice().sub(offset, count))
            .ok_or(GuestMemoryError::InvalidBackendAddress)?;
        // SAFETY: `part` was checked to be inside the region, which keeps it mapped.
        Ok(unsafe { VolatileSlice::new(part.as_ptr(), part.len()) })
    }
}

impl GuestMemoryRegionBytes for Region {}
