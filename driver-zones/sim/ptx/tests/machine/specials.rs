//! What a thread is told of itself, its block, its grid and the machine.

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use crate::common::{Arg, Numbers, Run, TestMemory, results, values};
    use crate::reference::{PERMUTE_MODES, permute_by};

    /// A kernel that writes two words at the place of its thread among all of the grid: where the
    /// thread is, and the sizes that it is told.
    const PLACES: &str = "
        .version 8.0\n.target sm_75\n.address_size 64
        .visible .entry k(.param .u64 out) {
        .reg .b32 %r<40>; .reg .b64 %rd<4>;
        mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
        mov.u32 %r4, %ntid.x; mov.u32 %r5, %ntid.y; mov.u32 %r6, %ntid.z;
        mov.u32 %r7, %ctaid.x; mov.u32 %r8, %ctaid.y; mov.u32 %r9, %ctaid.z;
        mov.u32 %r10, %nctaid.x; mov.u32 %r11, %nctaid.y; mov.u32 %r12, %nctaid.z;
        mad.lo.u32 %r13, %r9, %r11, %r8; mad.lo.u32 %r13, %r13, %r10, %r7;
        mul.lo.u32 %r14, %r4, %r5; mul.lo.u32 %r14, %r14, %r6;
        mad.lo.u32 %r15, %r3, %r5, %r2; mad.lo.u32 %r15, %r15, %r4, %r1;
        mad.lo.u32 %r16, %r13, %r14, %r15;
        shl.b32 %r17, %r1, 20; shl.b32 %r18, %r2, 16; shl.b32 %r19, %r3, 12;
        shl.b32 %r20, %r7, 8; shl.b32 %r21, %r8, 4;
        or.b32 %r17, %r17, %r18; or.b32 %r17, %r17, %r19; or.b32 %r17, %r17, %r20;
        or.b32 %r17, %r17, %r21; or.b32 %r17, %r17, %r9;
        shl.b32 %r22, %r4, 20; shl.b32 %r23, %r5, 16; shl.b32 %r24, %r6, 12;
        shl.b32 %r25, %r10, 8; shl.b32 %r26, %r11, 4;
        or.b32 %r22, %r22, %r23; or.b32 %r22, %r22, %r24; or.b32 %r22, %r22, %r25;
        or.b32 %r22, %r22, %r26; or.b32 %r22, %r22, %r12;
        ld.param.u64 %rd0, [out]; mul.wide.u32 %rd1, %r16, 8; add.s64 %rd1, %rd0, %rd1;
        st.global.u32 [%rd1], %r17; st.global.u32 [%rd1+4], %r22; ret; }";

    fn packed([x, y, z]: [u32; 3], [a, b, c]: [u32; 3]) -> u32 {
        x << 20 | y << 16 | z << 12 | a << 8 | b << 4 | c
    }

    /// All places in a box, x first.
    fn all([x, y, z]: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
        (0..z).flat_map(move |c| (0..y).flat_map(move |b| (0..x).map(move |a| [a, b, c])))
    }

    #[test]
    fn grids_and_blocks_have_three_dimensions() {
        for (grid, block) in [
            ([2, 3, 4], [3, 2, 5]),
            ([1, 1, 5], [1, 1, 7]),
            ([1, 2, 3], [7, 5, 2]),
            ([3, 1, 2], [1, 9, 4]),
        ] {
            let threads: u32 = grid.iter().chain(&block).product();
            let mut memory = TestMemory::default();
            let out = memory.add_words(&vec![u32::MAX; 2 * threads as usize]);
            let run = Run {
                grid: (grid[0], grid[1]),
                block: (block[0], block[1]),
                depth: (grid[2], block[2]),
                ..Run::default()
            };
            run.go(PLACES, "k", &[Arg::U64(out)], &memory).expect("no fault");
            let places = all(grid).flat_map(|of| all(block).map(move |thread| (thread, of)));
            let expected: Vec<u32> =
                places.flat_map(|(thread, of)| [packed(thread, of), packed(block, grid)]).collect();
            assert_eq!(memory.words(out), expected, "{grid:?} of {block:?}");
        }
    }

    /// One warp after the other along x, then y, then z.
    #[test]
    fn warps_go_through_all_three_dimensions_of_a_block() {
        let source = ".version 8.0\n.target sm_75\n.address_size 64
            .visible .entry k(.param .u64 out) {
            .reg .b32 %r<10>; .reg .b64 %rd<4>;
            mov.u32 %r1, %warpid; mov.u32 %r2, %laneid; mad.lo.u32 %r1, %r1, WARP_SZ, %r2;
            mov.u32 %r3, %tid.z; mov.u32 %r4, %tid.y; mov.u32 %r5, %tid.x;
            mad.lo.u32 %r3, %r3, 4, %r4; mad.lo.u32 %r3, %r3, 3, %r5; mov.u32 %r6, %nwarpid;
            ld.param.u64 %rd0, [out]; mul.wide.u32 %rd1, %r1, 8; add.s64 %rd1, %rd0, %rd1;
            st.global.u32 [%rd1], %r3; st.global.u32 [%rd1+4], %r6; ret; }";
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[u32::MAX; 2 * 84]);
        let run = Run { block: (3, 4), depth: (1, 7), ..Run::default() };
        run.go(source, "k", &[Arg::U64(out)], &memory).expect("no fault");
        // 84 threads are three warps.
        let expected: Vec<u32> = (0..84).flat_map(|thread| [thread, 3]).collect();
        assert_eq!(memory.words(out), expected);
    }

    #[test]
    fn lanes_have_masks() {
        let lanes = || (0..32_u32).cycle().take(70);
        for (name, mask) in [
            ("eq", (|lane| 1 << lane) as fn(u32) -> u32),
            ("lt", |lane| (0..lane).map(|at| 1 << at).sum()),
            ("le", |lane| (0..=lane).map(|at| 1 << at).sum()),
            ("gt", |lane| (lane + 1..32).map(|at| 1_u32 << at).sum()),
            ("ge", |lane| (lane..32).map(|at| 1_u32 << at).sum()),
        ] {
            let got = results(&format!("mov.u32 %r1, %lanemask_{name};"), 70);
            assert_eq!(got, lanes().map(mask).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn a_block_runs_on_one_of_the_multiprocessors() {
        let source = ".version 8.0\n.target sm_75\n.address_size 64
            .visible .entry k(.param .u64 out) {
            .reg .b32 %r<10>; .reg .b64 %rd<4>;
            mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
            mad.lo.u32 %r1, %r1, %r2, %r3; mov.u32 %r4, %smid; mov.u32 %r5, %nsmid;
            mov.u64 %rd2, %gridid;
            ld.param.u64 %rd0, [out]; mul.wide.u32 %rd1, %r1, 16; add.s64 %rd1, %rd0, %rd1;
            st.global.u32 [%rd1], %r4; st.global.u32 [%rd1+4], %r5; st.global.u64 [%rd1+8], %rd2;
            ret; }";
        let mut memory = TestMemory::default();
        let (blocks, threads) = (9, 64);
        let out = memory.add_words(&[u32::MAX; 4 * 9 * 64]);
        let run = Run { grid: (blocks, 1), block: (threads, 1), threads: 3, ..Run::default() };
        run.go(source, "k", &[Arg::U64(out)], &memory).expect("no fault");
        let words = memory.words(out);
        let all: Vec<[u32; 4]> = words.as_chunks::<4>().0.to_vec();
        for block in all.chunks(threads as usize) {
            let [on, of, ..] = block[0];
            assert!(on < of, "multiprocessor {on} of {of}");
            assert!(block.iter().all(|thread| *thread == block[0]), "a block stays where it is");
        }
        assert!(all.iter().all(|thread| thread[1..] == all[0][1..]), "one machine, one grid");
    }

    #[test]
    fn shared_memory_has_a_size() {
        // 20 bytes of its own, of which the dynamic ones begin at a multiple of 16.
        let source = ".version 8.0\n.target sm_75\n.address_size 64
            .visible .entry k(.param .u64 out) {
            .reg .b32 %r<4>; .reg .b64 %rd<4>; .shared .align 4 .b8 own[20];
            mov.u32 %r1, %dynamic_smem_size; mov.u32 %r2, %total_smem_size;
            mov.u32 %r3, 0; st.shared.u32 [own], %r3;
            ld.param.u64 %rd0, [out]; st.global.u32 [%rd0], %r1; st.global.u32 [%rd0+4], %r2;
            ret; }";
        // In units of 128 bytes.
        for (shared, total) in [(0, 128), (96, 128), (97, 256), (4000, 4096)] {
            let mut memory = TestMemory::default();
            let out = memory.add_words(&[9, 9]);
            let run = Run { shared, block: (1, 1), ..Run::default() };
            run.go(source, "k", &[Arg::U64(out)], &memory).expect("no fault");
            assert_eq!(memory.words(out), [shared, total]);
        }
    }

    #[test]
    fn the_global_timer_is_the_hosts_time() {
        let source = ".version 8.0\n.target sm_75\n.address_size 64
            .visible .entry k(.param .u64 out) {
            .reg .b32 %r<4>; .reg .b64 %rd<6>;
            mov.u64 %rd1, %globaltimer; nanosleep.u32 200000;
            mov.u32 %r1, %globaltimer_lo; mov.u32 %r2, %globaltimer_hi; mov.b64 %rd2, {%r1, %r2};
            mov.u64 %rd3, %globaltimer;
            ld.param.u64 %rd0, [out]; st.global.u64 [%rd0], %rd1; st.global.u64 [%rd0+8], %rd2;
            st.global.u64 [%rd0+16], %rd3; ret; }";
        let now = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            u64::try_from(since.as_nanos()).expect("before 2554")
        };
        // Between the two halves the upper one may count on.
        let told = (0..10).find_map(|_| {
            let mut memory = TestMemory::default();
            let out = memory.add(&[0; 24]);
            let run = Run { block: (1, 1), ..Run::default() };
            let before = now();
            run.go(source, "k", &[Arg::U64(out)], &memory).expect("no fault");
            let told = values(memory.bytes_mut(out), u64::from_le_bytes);
            let (first, halves, last) = (told[0], told[1], told[2]);
            assert!(before <= first && last <= now(), "{before} {told:?}");
            assert!(last - first >= 200_000, "a sleep takes its time");
            (first <= halves && halves <= last).then_some(())
        });
        assert!(told.is_some(), "the halves are never the whole");
    }

    #[test]
    fn permutations_have_modes() {
        let mut numbers = Numbers::new(1);
        for (mode, table) in &PERMUTE_MODES {
            for round in 0..40 {
                let [a, b] = [numbers.word(), numbers.word()];
                // Each of the four, whatever stands above them.
                let c = numbers.word() & !3 | round & 3;
                let body = format!(
                    "mov.b32 %r2, {a}; mov.b32 %r3, {b}; mov.b32 %r4, {c}; prmt.b32.{mode} %r1, %r2, %r3, %r4;"
                );
                let expected = permute_by(table, a, b, c);
                assert_eq!(results(&body, 1), [expected], "{mode} {a:#x} {b:#x} {c:#x}");
            }
        }
    }
}
