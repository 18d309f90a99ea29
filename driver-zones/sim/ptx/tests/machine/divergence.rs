//! Lanes that part and meet: branches, barriers, shuffles, votes.

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use crate::common::{Arg, Run, TestMemory, program, results};
    use gpuzone_sim_ptx::Fault;

    fn fault(body: &str, threads: u32) -> Fault {
        let mut memory = TestMemory::default();
        let out = memory.add_words(&vec![0; threads as usize]);
        let run = Run { block: (threads, 1), budget: 1_000_000, ..Run::default() };
        let result = run.go(&program(body), "k", &[Arg::U64(out)], &memory);
        result.expect_err("a fault")
    }

    #[test]
    fn nested_branches_and_loops_of_different_length() {
        // r1 = odd lane ? sum of 1..=lane : (lane < 10 ? lane * 3 : 100)
        let body = "
            and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 1; mov.u32 %r1, 0;
            @%p1 bra ODD;
            setp.lt.u32 %p2, %r0, 10;
            @!%p2 bra BIG;
            mul.lo.u32 %r1, %r0, 3; bra DONE;
            BIG: mov.u32 %r1, 100; bra DONE;
            ODD: mov.u32 %r3, %r0;
            LOOP: add.u32 %r1, %r1, %r3; sub.u32 %r3, %r3, 1;
            setp.ne.u32 %p3, %r3, 0; @%p3 bra LOOP;
            DONE:";
        let expected: Vec<u32> = (0..45)
            .map(|lane| match lane {
                lane if lane % 2 == 1 => lane * (lane + 1) / 2,
                lane if lane < 10 => lane * 3,
                _ => 100,
            })
            .collect();
        assert_eq!(results(body, 45), expected);
    }

    #[test]
    fn lanes_that_left_early_do_not_hold_up_a_barrier() {
        // Threads 0..40 leave; the others meet, and see what each other wrote.
        let body = "
            .shared .align 4 .b32 seen[128];
            mov.u32 %r1, 7; setp.lt.u32 %p1, %r0, 40; @%p1 ret;
            mov.u32 %r2, seen; shl.b32 %r3, %r0, 2; add.u32 %r3, %r3, %r2; st.shared.u32 [%r3], %r0;
            bar.sync 0;
            sub.u32 %r4, 139, %r0; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r2;
            ld.shared.u32 %r1, [%r4];";
        let expected: Vec<u32> = (0..100).map(|t| if t < 40 { 0 } else { 139 - t }).collect();
        assert_eq!(results(body, 100), expected);
    }

    #[test]
    fn a_barrier_in_two_branches_is_one_barrier() {
        let body = "
            .shared .b32 total; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0;
            @%p1 bra EVEN;
            atom.shared.add.u32 %r3, [total], 1; barrier.sync 0; bra DONE;
            EVEN: atom.shared.add.u32 %r3, [total], 100; barrier.sync 0;
            DONE: ld.shared.u32 %r1, [total];";
        assert_eq!(results(body, 96), vec![48 * 101; 96]);
    }

    #[test]
    fn producers_arrive_and_consumers_wait() {
        let body = "
            .shared .b32 box; mov.u32 %r1, 0; setp.ge.u32 %p1, %r0, 32; @%p1 bra PRODUCE;
            bar.sync 1, 64; ld.shared.u32 %r1, [box]; bra DONE;
            PRODUCE: st.shared.u32 [box], 42; bar.arrive 1, 64;
            DONE:";
        let expected: Vec<u32> = (0..64).map(|t| if t < 32 { 42 } else { 0 }).collect();
        assert_eq!(results(body, 64), expected);
    }

    #[test]
    fn threads_vote_at_a_barrier() {
        let body = "
            setp.lt.u32 %p1, %r0, 50; bar.red.popc.u32 %r1, 0, !%p1;
            barrier.cta.red.and.pred %p2, 1, %p1; bar.red.or.pred %p3, 0, %p1;
            setp.lt.u32 %p4, %r0, 100; bar.red.and.pred %p5, 0, 96, %p4;
            @%p2 add.u32 %r1, %r1, 1000; @%p3 add.u32 %r1, %r1, 2000; @%p5 add.u32 %r1, %r1, 4000;";
        assert_eq!(results(body, 96), vec![46 + 2000 + 4000; 96]);
    }

    #[test]
    fn waiting_for_nobody_is_a_fault() {
        let body = "mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64;";
        assert_eq!(fault(body, 32), Fault::BarrierDeadlock);
        let body = "mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 5; @%p1 bra A; bar.sync 0; bra B;
                    A: bar.warp.sync 0xffffffff; B:";
        assert_eq!(fault(body, 32), Fault::BarrierDeadlock);
        assert!(matches!(fault("mov.u32 %r1, 16; bar.sync %r1;", 32), Fault::InvalidProgram(_)));
    }

    #[test]
    fn lanes_may_meet_at_different_warp_barriers() {
        let body = "
            .shared .b32 box; mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 5; @%p1 bra A;
            st.shared.u32 [box], 9; bar.warp.sync 0xffffffff; bra B;
            A: bar.warp.sync 0xffffffff; ld.shared.u32 %r1, [box]; B:";
        let expected: Vec<u32> = (0..32).map(|t| if t < 5 { 9 } else { 0 }).collect();
        assert_eq!(results(body, 32), expected);
    }

    #[test]
    fn shuffles_move_values_within_segments() {
        let all = |mode: &str, amount: u32, clamp: u32| {
            results(
                &format!(
                    "add.u32 %r2, %r0, 100; shfl.sync.{mode}.b32 %r1|%p1, %r2, {amount}, {clamp}, -1;
                     @!%p1 add.u32 %r1, %r1, 1000;"
                ),
                32,
            )
        };
        let lane = |f: fn(u32) -> u32| (0..32).map(f).collect::<Vec<_>>();
        assert_eq!(all("down", 4, 31), lane(|i| if i < 28 { 104 + i } else { 1100 + i }));
        assert_eq!(all("up", 3, 0), lane(|i| if i >= 3 { 97 + i } else { 1100 + i }));
        assert_eq!(all("bfly", 5, 31), lane(|i| 100 + (i ^ 5)));
        assert_eq!(all("idx", 9, 31), lane(|_| 109));
        // Segments of 8: clamp 7, mask 24 in bits 8 to 12.
        assert_eq!(all("idx", 2, 7 | 24 << 8), lane(|i| 102 + (i & 24)));
        assert_eq!(
            all("down", 1, 7 | 24 << 8),
            lane(|i| if i % 8 == 7 { 1100 + i } else { 101 + i })
        );
    }

    #[test]
    fn a_shuffle_waits_for_the_lanes_it_names() {
        // Lanes below 8 come late; the mask names all, so the others wait.
        let body = "
            mov.u32 %r2, 0; setp.ge.u32 %p1, %r0, 8; @%p1 bra JOIN;
            mov.u32 %r3, 0;
            LOOP: add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 50; @%p2 bra LOOP;
            mov.u32 %r2, 77;
            JOIN: shfl.sync.idx.b32 %r1, %r2, 3, 31, -1;";
        assert_eq!(results(body, 32), vec![77; 32]);
    }

    #[test]
    fn halves_of_a_warp_shuffle_apart_from_each_other() {
        let body = "
            setp.lt.u32 %p1, %r0, 16; mov.u32 %r2, %r0; @%p1 bra LOW;
            shfl.sync.bfly.b32 %r1, %r2, 1, 31, 0xffff0000; bra DONE;
            LOW: shfl.sync.bfly.b32 %r1, %r2, 2, 31, 0xffff; DONE:";
        let expected: Vec<u32> = (0..32).map(|i| if i < 16 { i ^ 2 } else { i ^ 1 }).collect();
        assert_eq!(results(body, 32), expected);
    }

    #[test]
    fn ended_and_absent_lanes_are_not_waited_for() {
        let body = "
            mov.u32 %r1, 1; setp.lt.u32 %p1, %r0, 4; @%p1 exit;
            vote.sync.ballot.b32 %r1, 1, -1;";
        let expected: Vec<u32> = (0..20).map(|i| if i < 4 { 0 } else { 0xffff0 }).collect();
        assert_eq!(results(body, 20), expected);
    }

    #[test]
    fn votes_and_masks() {
        let body = "
            setp.lt.u32 %p1, %r0, 32; setp.eq.u32 %p2, %r0, 3;
            vote.sync.all.pred %p3, %p1, -1; vote.sync.any.pred %p4, %p2, -1;
            vote.sync.uni.pred %p5, %p2, -1; vote.sync.ballot.b32 %r2, !%p2, -1;
            selp.u32 %r1, 1, 0, %p3; @%p4 add.u32 %r1, %r1, 2; @%p5 add.u32 %r1, %r1, 4;
            setp.eq.u32 %p6, %r2, 0xfffffff7; @%p6 add.u32 %r1, %r1, 8;
            and.b32 %r4, %r0, 3; match.any.sync.b32 %r3, %r4, -1;
            popc.b32 %r3, %r3; shl.b32 %r3, %r3, 4; add.u32 %r1, %r1, %r3;
            activemask.b32 %r3; setp.eq.u32 %p7, %r3, -1; @%p7 add.u32 %r1, %r1, 1024;
            redux.sync.max.u32 %r3, %r0, -1; shl.b32 %r3, %r3, 16; add.u32 %r1, %r1, %r3;";
        assert_eq!(results(body, 32), vec![1 + 2 + 8 + (8 << 4) + 1024 + (31 << 16); 32]);
    }

    #[test]
    fn lanes_agree_and_elect_one() {
        let body = "
            mov.u32 %r2, 5; match.all.sync.b32 %r3|%p1, %r2, -1;
            match.all.sync.b32 %r4|%p2, %r0, -1; elect.sync %r5|%p3, -1;
            setp.eq.u32 %p4, %r3, -1; selp.u32 %r1, 1, 0, %p4; @%p1 add.u32 %r1, %r1, 2;
            setp.eq.u32 %p5, %r4, 0; @%p5 add.u32 %r1, %r1, 4; @!%p2 add.u32 %r1, %r1, 8;
            add.u32 %r1, %r1, %r5; @%p3 add.u32 %r1, %r1, 16;";
        let expected: Vec<u32> = (0..32).map(|lane| if lane == 0 { 31 } else { 15 }).collect();
        assert_eq!(results(body, 32), expected);
    }

    #[test]
    fn a_lock_within_a_warp_makes_progress() {
        // Each lane takes the lock by spinning; the holder is further on.
        let body = "
            .shared .b32 lock; .shared .b32 count;
            SPIN: atom.shared.cas.b32 %r2, [lock], 0, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra SPIN;
            ld.shared.u32 %r3, [count]; add.u32 %r3, %r3, 1; st.shared.u32 [count], %r3;
            membar.cta; atom.shared.exch.b32 %r2, [lock], 0;
            bar.sync 0; ld.shared.u32 %r1, [count];";
        assert_eq!(results(body, 64), vec![64; 64]);
    }

    #[test]
    fn a_branch_table_sends_each_lane_its_way() {
        let body = "
            rem.u32 %r2, %r0, 3;
            TABLE: .branchtargets A, B, C;
            brx.idx %r2, TABLE;
            A: mov.u32 %r1, 10; bra D; B: mov.u32 %r1, 20; bra D; C: mov.u32 %r1, 30; D:";
        let expected: Vec<u32> = (0..32).map(|i| 10 * (i % 3 + 1)).collect();
        assert_eq!(results(body, 32), expected);
        let body = body.replace("rem.u32 %r2, %r0, 3", "mov.u32 %r2, %r0");
        assert!(matches!(fault(&body, 32), Fault::InvalidProgram(_)));
    }

    #[test]
    fn cancelling_ends_an_endless_loop() {
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 64]);
        let cancel = AtomicBool::new(false);
        let source = program("mov.u32 %r1, 0; L: add.u32 %r1, %r1, 1; bra L;");
        let fault = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                cancel.store(true, Ordering::Relaxed);
            });
            let run = Run { block: (64, 1), grid: (5, 1), cancel: &cancel, ..Run::default() };
            run.go(&source, "k", &[Arg::U64(out)], &memory)
        });
        assert_eq!(fault, Err(Fault::Cancelled));
    }

    #[test]
    fn a_budget_ends_an_endless_loop() {
        assert_eq!(fault("mov.u32 %r1, 0; L: bra L;", 64), Fault::LaunchTimeout);
        assert_eq!(fault("mov.u32 %r1, 0; trap;", 64), Fault::Trap);
    }
}
