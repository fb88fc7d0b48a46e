// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A checked, contiguous range of guest memory, and ranges that continue over adjacent regions.
//!
//! The guest writes to this memory at any moment, so no Rust reference to it ever exists: bytes
//! are copied out or in, and what was checked is what was copied.

use std::fmt;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::GuestMemory;
use crate::{AccessError, GuestAddress};

/// A contiguous range of guest memory that was checked to exist, and does so for `'m`.
///
/// Its content may change at any time under the reader. A value of 1, 2, 4 or 8 bytes at an
/// address aligned to its size is read and written in one access.
#[derive(Clone, Copy)]
pub struct GuestSlice<'m> {
    start: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'m ()>,
}

// SAFETY: a slice is an address and a length; what is behind is shared with the guest's vCPUs
// anyway, and reached through raw copies and atomics alone.
unsafe impl Send for GuestSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for GuestSlice<'_> {}

impl<'m> GuestSlice<'m> {
    /// # Safety
    ///
    /// `len` bytes from `start` on must be mapped readable and writable for all of `'m`, and no
    /// Rust reference to them may exist.
    pub(crate) const unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            memory: PhantomData,
        }
    }

    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host address of the first byte. The guest changes what is there at any time: do not
    /// make a reference of it.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The range as the `readv` and `writev` families of system calls take it.
    #[must_use]
    pub const fn as_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: self.len,
        }
    }

    /// The `len` bytes from `offset` on, or `None` if they are not all inside.
    #[must_use]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| {
            // SAFETY: offset <= end <= self.len, so the part is inside what `self` vouches for.
            unsafe { Self::new(self.start.add(offset), len) }
        })
    }

    /// The bytes before `middle` and those from it on, or `None` if it is past the end.
    #[must_use]
    pub fn split_at(&self, middle: usize) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(middle)?;
        Some((self.sub(0, middle)?, self.sub(middle, rest)?))
    }

    /// Copies bytes out, as many as fit in both, and says how many.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let len = self.len.min(buffer.len());
        // SAFETY: `len` bytes are inside both; a Rust buffer and guest memory cannot overlap.
        unsafe { copy(self.start.as_ptr(), buffer.as_mut_ptr(), len) };
        len
    }

    /// Copies bytes in, as many as fit in both, and says how many.
    pub fn copy_from(&self, buffer: &[u8]) -> usize {
        let len = self.len.min(buffer.len());
        // SAFETY: as in `copy_to`.
        unsafe { copy(buffer.as_ptr(), self.start.as_ptr(), len) };
        len
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        // SAFETY: the whole range is mapped writable, and no reference to it exists.
        unsafe { self.start.as_ptr().write_bytes(value, self.len) };
    }

    /// Reads a plain value at `offset` bytes.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutsideSlice`] if not all of it is inside.
    pub fn read_obj<T: FromBytes>(&self, offset: usize) -> Result<T, AccessError> {
        let part = self.part(offset, size_of::<T>())?;
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `part` has size_of::<T>() bytes and the whole of `value` is written. Any bytes
        // make a valid `T: FromBytes`.
        unsafe {
            copy(
                part.start.as_ptr(),
                value.as_mut_ptr().cast(),
                size_of::<T>(),
            );
            Ok(value.assume_init())
        }
    }

    /// Writes a plain value at `offset` bytes.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutsideSlice`] if not all of it is inside.
    pub fn write_obj<T: IntoBytes + Immutable>(
        &self,
        offset: usize,
        value: &T,
    ) -> Result<(), AccessError> {
        self.part(offset, size_of::<T>())?
            .copy_from(value.as_bytes());
        Ok(())
    }

    /// Reads 16 bits at `offset` bytes atomically. An ordering that makes no sense for a read
    /// (release) is taken for the strongest.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutsideSlice`] or [`AccessError::Misaligned`].
    pub fn load_u16(&self, offset: usize, order: Ordering) -> Result<u16, AccessError> {
        let at = self.atomic(offset, size_of::<u16>())?.cast();
        // SAFETY: `at` is inside the slice and aligned; every access to it here is atomic or a
        // raw copy of bytes that the guest may change as well.
        Ok(unsafe { AtomicU16::from_ptr(at) }.load(load_order(order)))
    }

    /// Reads 32 bits at `offset` bytes atomically; else as [`load_u16`](Self::load_u16).
    ///
    /// # Errors
    ///
    /// [`AccessError::OutsideSlice`] or [`AccessError::Misaligned`].
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, AccessError> {
        let at = self.atomic(offset, size_of::<u32>())?.cast();
        // SAFETY: as in `load_u16`.
        Ok(unsafe { AtomicU32::from_ptr(at) }.load(load_order(order)))
    }

    /// Writes 16 bits at `offset` bytes atomically. An ordering that makes no sense for a write
    /// (acquire) is taken for the strongest.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutsideSlice`] or [`AccessError::Misaligned`].
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) -> Result<(), AccessError> {
        let at = self.atomic(offset, size_of::<u16>())?.cast();
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(at) }.store(value, store_order(order));
        Ok(())
    }

    /// Writes 32 bits at `offset` bytes atomically; else as [`store_u16`](Self::store_u16).
    ///
    /// # Errors
    ///
    /// [`AccessError::OutsideSlice`] or [`AccessError::Misaligned`].
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> Result<(), AccessError> {
        let at = self.atomic(offset, size_of::<u32>())?.cast();
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU32::from_ptr(at) }.store(value, store_order(order));
        Ok(())
    }

    fn part(&self, offset: usize, len: usize) -> Result<Self, AccessError> {
        self.sub(offset, len).ok_or(AccessError::OutsideSlice {
            offset,
            len,
            slice_len: self.len,
        })
    }

    /// The host address of `size` bytes at `offset` that an atomic access can take.
    fn atomic(&self, offset: usize, size: usize) -> Result<*mut u8, AccessError> {
        let at = self.part(offset, size)?.start.as_ptr();
        if at.addr().is_multiple_of(size) {
            Ok(at)
        } else {
            Err(AccessError::Misaligned {
                offset: offset as u64,
                size,
            })
        }
    }
}

impl fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSlice")
            .field("host", &self.start)
            .field("len", &self.len)
            .finish()
    }
}

const fn load_order(order: Ordering) -> Ordering {
    match order {
        Ordering::Relaxed | Ordering::Acquire => order,
        _ => Ordering::SeqCst,
    }
}

const fn store_order(order: Ordering) -> Ordering {
    match order {
        Ordering::Relaxed | Ordering::Release => order,
        _ => Ordering::SeqCst,
    }
}

/// Copies `len` bytes; those of one machine word, aligned on both sides, in one access, so that
/// neither side sees half a value.
///
/// # Safety
///
/// `len` bytes must be readable at `from` and writable at `to`, and the two must not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let is_aligned_to = |size: usize| (from.addr() | to.addr()) & (size - 1) == 0;
    // SAFETY: the caller vouches for both ranges, and the word accesses are aligned.
    unsafe {
        match len {
            1 => to.write_volatile(from.read_volatile()),
            2 if is_aligned_to(2) => to
                .cast::<u16>()
                .write_volatile(from.cast::<u16>().read_volatile()),
            4 if is_aligned_to(4) => to
                .cast::<u32>()
                .write_volatile(from.cast::<u32>().read_volatile()),
            8 if is_aligned_to(8) => to
                .cast::<u64>()
                .write_volatile(from.cast::<u64>().read_volatile()),
            _ => to.copy_from_nonoverlapping(from, len),
        }
    }
}

/// The slices, in order, of a range that was checked to be memory from end to end: one for each
/// region that it touches. Made by [`GuestMemory::slices`].
#[derive(Clone, Debug)]
pub struct Slices<'m> {
    pub(crate) memory: &'m GuestMemory,
    pub(crate) address: GuestAddress,
    pub(crate) remaining: usize,
}

impl<'m> Iterator for Slices<'m> {
    type Item = GuestSlice<'m>;

    fn next(&mut self) -> Option<GuestSlice<'m>> {
        if self.remaining == 0 {
            return None;
        }
        // `GuestMemory::slices` has checked the range, so neither step ends the walk early.
        let slice = self.memory.longest_slice(self.address, self.remaining)?;
        self.remaining -= slice.len();
        self.address = self.address.checked_add(slice.len() as u64)?;
        Some(slice)
    }
}
