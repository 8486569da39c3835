//! Memory for many blocks of the same parts, taken and given back in any order.
//!
//! Blocks are cut from slabs of [`SLOTS`], and in a slab a part of all its blocks lies together: whoever reads one part of block after
//! block, as attention reads a head's keys, reads memory from end to end, and in huge pages.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ternbench_kernels::AlignedBytes;

/// Blocks of a slab. The more, the longer the runs, and the more memory the first block takes.
const SLOTS: usize = 16;

/// Where blocks come from. Slabs are kept, for new blocks, until the last block and the last handle are gone.
#[derive(Debug)]
pub(crate) struct Slabs {
    n_parts: usize,
    part_len: usize,
    in_use: AtomicUsize,
    /// By address: neighbours are taken one after the other.
    free: Mutex<BTreeMap<NonZeroUsize, Place>>,
}

/// Room for a block, of which there is one owner: the list of free ones or a [`Block`].
#[derive(Debug)]
struct Place {
    /// Of its first part; the others follow at [`SLOTS`] parts' distance.
    start: NonNull<u8>,
    /// Keeps the memory.
    _slab: Arc<AlignedBytes>,
}

// SAFETY: a place is the only way to its bytes, so it may move to another thread with them.
unsafe impl Send for Place {}
// SAFETY: a shared place gives no access; a shared `Block` gives shared access to plain bytes, and exclusive access only by the contract of `own_part`.
unsafe impl Sync for Place {}

/// A block, whose parts hold zeros or what was there before.
#[derive(Debug)]
pub(crate) struct Block {
    /// `None` only while it is dropped.
    place: Option<Place>,
    slabs: Arc<Slabs>,
}

impl Slabs {
    /// For blocks of `n_parts` of at least `part_len` bytes.
    pub(crate) fn new(n_parts: usize, part_len: usize) -> Self {
        let part_len = part_len.next_multiple_of(64);
        Self { n_parts, part_len, in_use: AtomicUsize::new(0), free: Mutex::default() }
    }

    /// Blocks that are held.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Bytes of the slabs.
    pub(crate) fn bytes(&self) -> usize {
        (self.in_use() + self.free().len()) * self.block_bytes()
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.n_parts * self.part_len
    }

    /// A block.
    pub(crate) fn take(self: &Arc<Self>) -> Block {
        let mut free = self.free();
        if free.is_empty() {
            self.add_slab(&mut free);
        }
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Block { place: free.pop_first().map(|(_, place)| place), slabs: self.clone() }
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<NonZeroUsize, Place>> {
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add_slab(&self, free: &mut BTreeMap<NonZeroUsize, Place>) {
        let mut slab = AlignedBytes::zeroed(SLOTS * self.block_bytes());
        let start = NonNull::from(&mut slab[..]).cast::<u8>();
        let slab = Arc::new(slab);
        free.extend((0..SLOTS).map(|slot| {
            // SAFETY: inside the slab, or at its end if parts are empty; its memory does not move with its handle.
            let start = unsafe { start.add(slot * self.part_len) };
            (start.addr(), Place { start, _slab: slab.clone() })
        }));
    }
}

impl Block {
    /// Where a part is, which the block owns, and its length.
    fn locate(&self, part: usize) -> (*mut u8, usize) {
        assert!(part < self.slabs.n_parts, "part {part} of {}", self.slabs.n_parts);
        match &self.place {
            Some(place) => (place.start.as_ptr().wrapping_add(part * SLOTS * self.slabs.part_len), self.slabs.part_len),
            None => (NonNull::dangling().as_ptr(), 0),
        }
    }

    /// The bytes of a part, from a multiple of 64 on.
    pub(crate) fn part(&self, part: usize) -> &[u8] {
        let (start, len) = self.locate(part);
        // SAFETY: initialised, and this block's alone: slots are `part_len` apart, parts `SLOTS` slots.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// The same, to write.
    pub(crate) fn part_mut(&mut self, part: usize) -> &mut [u8] {
        // SAFETY: the borrow of the block is exclusive.
        unsafe { self.own_part(part) }
    }

    /// The same, for workers that write a part each.
    ///
    /// # Safety
    /// Nobody else reads or writes the part as long as this is borrowed.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts, by the contract above")]
    pub(crate) unsafe fn own_part(&self, part: usize) -> &mut [u8] {
        let (start, len) = self.locate(part);
        // SAFETY: as in `part`; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        let mut copy = self.slabs.take();
        (0..self.slabs.n_parts).for_each(|part| copy.part_mut(part).copy_from_slice(self.part(part)));
        copy
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.slabs.in_use.fetch_sub(1, Ordering::Relaxed);
        self.slabs.free().extend(self.place.take().map(|place| (place.start.addr(), place)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_are_used_again() {
        let slabs = Arc::new(Slabs::new(3, 100));
        assert_eq!(slabs.block_bytes(), 3 * 128);
        let mut blocks: Vec<Block> = (0..20).map(|_| slabs.take()).collect();
        for (i, block) in blocks.iter_mut().enumerate() {
            for part in 0..3 {
                assert!(block.part(part).as_ptr().addr().is_multiple_of(64) && block.part(part).len() == 128);
                block.part_mut(part).fill((3 * i + part) as u8);
            }
        }
        for (i, block) in blocks.iter().enumerate() {
            assert!((0..3).all(|part| block.part(part).iter().all(|&byte| byte == (3 * i + part) as u8)));
        }
        let copy = blocks[7].clone();
        assert!(copy.part(2).iter().all(|&byte| byte == 23) && copy.part(2).as_ptr() != blocks[7].part(2).as_ptr());
        assert_eq!((slabs.in_use(), slabs.bytes()), (21, 32 * slabs.block_bytes()));
        let third = blocks[3].part(0).as_ptr();
        drop(blocks.split_off(3));
        assert_eq!((slabs.in_use(), slabs.free().len()), (4, 28));
        let again: Vec<Block> = (0..28).map(|_| slabs.take()).collect();
        assert!(again.iter().any(|block| block.part(0).as_ptr() == third), "given back, and taken again");
        assert_eq!(slabs.bytes(), 32 * slabs.block_bytes());
        drop(again);
        std::thread::spawn(move || drop(copy)).join().unwrap();
        drop(blocks);
        assert_eq!((slabs.in_use(), slabs.free().len()), (0, 32));
    }

    #[test]
    fn a_part_of_blocks_taken_in_turn_is_one_run_of_memory() {
        let slabs = Arc::new(Slabs::new(2, 64));
        for _ in 0..2 {
            let blocks: Vec<Block> = (0..SLOTS).map(|_| slabs.take()).collect();
            for pair in blocks.windows(2) {
                assert!((0..2).all(|part| pair[0].part(part).as_ptr_range().end == pair[1].part(part).as_ptr()));
            }
        }
    }
}
