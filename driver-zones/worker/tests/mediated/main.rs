//! The whole mediated path: real processes, the real worker, the shim, and the simulated GPU
//! where the driver would be.

#[cfg(test)]
mod clients;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod roles;
#[cfg(test)]
mod tenant;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::process::Output;
    use std::time::Duration;

    use gpuzone_cuda_abi::{CuResult, FUNCTIONS};
    use gpuzone_wire::control::Caps;
    use gpuzone_wire::handover::{EXIT_DRIVER, EXIT_REPLACE};
    use gpuzone_wire::spec;
    use gpuzone_wire::view::{View, look};

    use crate::harness::{Lease, PATIENCE};
    use crate::hostile;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_program_of_cudarc_runs_unchanged() {
        let lease = Lease::start(256 * MIB);
        lease.run("vector_add");
        lease.wait_for("all to be over", |stats| stats.sessions == 0);
        let stats = lease.stats();
        let bytes = 700_001 * 4;
        assert_eq!(stats.counters.launches, 1);
        assert_eq!(stats.counters.bytes_to_device, 2 * bytes);
        assert_eq!(stats.counters.bytes_from_device, bytes);
        assert!(stats.counters.busy_nanoseconds > 0);
        assert_eq!(stats.used.get(), 0, "memory came back");
        assert!(stats.counters.peak_used.get() >= 3 * bytes);
        assert_eq!(stats.refused_by_name.into_iter().collect::<Vec<_>>(), []);
    }

    #[test]
    fn new_memory_shows_nothing_of_before() {
        Lease::start(64 * MIB).run("new_memory_is_zero");
    }

    #[test]
    fn the_limit_is_exact() {
        let lease = Lease::start(100 * MIB + 12_288);
        let mut tenant = lease.tenant("limits");
        assert_eq!(tenant.says("total"), (100 * MIB + 12_288).to_string());
        tenant.finish();
        assert_eq!(lease.stats().counters.refused_memory, 3);
    }

    #[test]
    fn two_processes_of_a_lease_share_its_limit() {
        let lease = Lease::start(100 * MIB);
        let mut both = [lease.tenant("greedy"), lease.tenant("greedy")];
        both.iter_mut().for_each(|tenant| drop(tenant.says("connected")));
        both.iter_mut().for_each(|tenant| tenant.go_on());
        let got: u64 =
            both.iter_mut().map(|t| t.says("got").parse::<u64>().expect("a number")).sum();
        assert_eq!(got, 100);
        assert_eq!(lease.stats().used.get(), 100 * MIB);
        assert_eq!(lease.stats().sessions, 2);
        for mut tenant in both {
            tenant.go_on();
            tenant.finish();
        }
        lease.wait_for("the memory to come back", |stats| stats.used.get() == 0);
    }

    #[test]
    fn contexts_are_charged_what_the_driver_takes_for_them() {
        let lease = Lease::start_on(100 * MIB, "context_overhead = \"20Mi\"");
        let mut tenant = lease.tenant("greedy");
        tenant.says("connected");
        assert_eq!(lease.stats().used.get(), 20 * MIB);
        tenant.go_on();
        assert_eq!(tenant.says("got"), "80");
        tenant.go_on();
        tenant.finish();
        lease.wait_for("the memory to come back", |stats| stats.used.get() == 0);
    }

    #[test]
    fn a_killed_tenants_memory_comes_back() {
        let lease = Lease::start(100 * MIB);
        let mut tenant = lease.tenant("hold");
        tenant.says("holding");
        assert_eq!(lease.stats().used.get(), 64 * MIB);
        tenant.kill();
        lease.wait_for("the session to end", |stats| stats.sessions == 0);
        assert_eq!(lease.stats().used.get(), 0);
        lease.run("limits");
    }

    #[test]
    fn a_fault_stays_with_its_process_and_the_worker_asks_to_be_replaced() {
        let mut lease = Lease::start(100 * MIB);
        let mut other = lease.tenant("greedy");
        other.says("connected");
        lease.run("fault");
        // Whoever is there, and whoever comes meanwhile, is served.
        lease.run("vector_add");
        lease.wait_for("the others to end", |stats| stats.sessions == 1);
        other.go_on();
        assert_eq!(other.says("got"), "100");
        other.go_on();
        other.finish();
        assert_eq!(lease.worker_exit(), Some(EXIT_REPLACE));
        lease.start_worker();
        lease.run("vector_add");
    }

    #[test]
    fn a_killed_worker_is_an_error_and_no_hang() {
        let mut lease = Lease::start(100 * MIB);
        let mut tenant = lease.tenant("lose_the_worker");
        tenant.says("connected");
        lease.kill_worker();
        tenant.go_on();
        tenant.finish();
        assert_eq!((lease.stats().sessions, lease.stats().used.get()), (0, 0));
        lease.start_worker();
        lease.run("vector_add");
    }

    #[test]
    fn each_gpu_of_a_lease_is_shown_to_work_by_itself() {
        let lease = Lease::start_on_two(100 * MIB);
        let mut tenant = lease.tenant("work_on_the_second");
        tenant.says("working");
        let mut seen = View::default();
        let works = std::iter::repeat_with(|| {
            std::thread::sleep(Duration::from_millis(20));
            seen = look(lease.slot(), PATIENCE).expect("shown");
            seen.gpus[1].busy.is_some_and(|busy| busy > 0)
        });
        assert!(works.take(1000).any(|works| works), "{seen:?}");
        assert_eq!(seen.gpus[0].busy, Some(0), "{seen:?}");
        let of_process = &seen.processes[0].busy;
        assert!(of_process[0] == Some(0) && of_process[1] > Some(0), "{seen:?}");
        tenant.go_on();
        tenant.finish();
    }

    #[test]
    fn what_is_not_supported_says_so_and_is_counted() {
        let lease = Lease::start(100 * MIB);
        let said = lease.output("unsupported", &[]).stderr;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("tables that NVIDIA's driver has for the CUDA runtime"), "{said}");
        lease.wait_for("the session to end", |stats| stats.sessions == 0);
        let stats = lease.stats();
        assert_eq!(stats.counters.refused_calls, 4);
        let counted: Vec<(String, u64)> = stats.refused_by_name.into_iter().collect();
        let expected = [("cuGetExportTable", 1), ("cuMemAllocManaged", 2), ("cuProfilerStart", 1)];
        let expected = expected.map(|(name, times)| (name.to_owned(), times));
        assert_eq!(counted, expected);
    }

    #[test]
    fn each_function_that_is_not_supported_says_so_and_is_counted() {
        let lease = Lease::start(100 * MIB);
        lease.run("called_with_nothing");
        lease.wait_for("the session to end", |stats| stats.sessions == 0);
        // Before there was a worker, nobody counted.
        let is_refused = |name: &&&str| spec::support(name).is_none();
        let expected: BTreeMap<String, u64> =
            FUNCTIONS.iter().filter(is_refused).map(|name| ((*name).to_owned(), 1)).collect();
        assert!(expected.len() > 300 && expected.contains_key("cuGraphicsGLRegisterBuffer"));
        assert_eq!(lease.stats().refused_by_name, expected);
    }

    /// Plays a role through the shim and on the simulated library itself.
    fn both(role: &str) {
        let lease = Lease::start(512 * MIB);
        lease.run(role);
        lease.run_without_us(role);
        lease.wait_for("the session to end", |stats| stats.sessions == 0);
        assert_eq!(lease.stats().used.get(), 0, "memory came back");
        assert_eq!(lease.stats().refused_by_name.into_iter().collect::<Vec<_>>(), []);
    }

    #[test]
    fn code_of_all_kinds_loads_as_with_the_driver() {
        ["libraries", "fat_binaries", "linking", "occupancy", "files", "launches", "cooperative"]
            .into_iter()
            .for_each(both);
        ["attributes", "enumerated"].into_iter().for_each(both);
    }

    #[test]
    fn what_programs_ask_is_answered_as_by_the_driver() {
        ["pointers", "reset", "asked"].into_iter().for_each(both);
        Lease::start(100 * MIB).run("properties");
    }

    #[test]
    fn options_that_nobody_judged_are_refused() {
        Lease::start(100 * MIB).run("options");
    }

    #[test]
    fn threads_have_default_streams_of_their_own() {
        Lease::start(100 * MIB).run("own_defaults");
    }

    #[test]
    fn memory_of_all_kinds_is_as_with_the_driver() {
        ["rows", "halves", "boxes", "pinned", "streamed", "pools", "mapped", "unified"]
            .into_iter()
            .for_each(both);
    }

    #[test]
    fn kernels_reach_shared_memory_and_nothing_beside_it() {
        let mut lease = Lease::start(100 * MIB);
        lease.run("registered");
        lease.run("beside_pinned");
        assert_eq!(lease.worker_exit(), Some(EXIT_REPLACE), "a fault");
    }

    /// What a role says between two marks.
    fn between<'a>(said: &'a str, begin: &str, end: &str) -> &'a str {
        let (_, rest) = said.split_once(begin).expect(begin);
        rest.split_once(end).expect(end).0
    }

    #[test]
    fn what_kernels_print_comes_out_of_their_program() {
        let lease = Lease::start(100 * MIB);
        let (mediated, direct) = (lease.output("prints", &[]), lease.output_without_us("prints"));
        let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
        let (mediated, direct) = (said(&mediated), said(&direct));
        let mediated = between(&mediated, "[begin]", "[end]");
        assert_eq!(mediated, between(&direct, "[begin]", "[end]"));
        assert_eq!(mediated.matches("block 0 of a program:").count(), 6, "{mediated}");
    }

    #[test]
    fn processes_of_a_lease_see_each_their_own_prints() {
        let lease = Lease::start(100 * MIB);
        let names = ["one", "another", "third"];
        let outputs: Vec<Output> = std::thread::scope(|scope| {
            let start = |name: &'static str| {
                let lease = &lease;
                scope.spawn(move || lease.output("prints_often", &[("TENANT_NAME", name)]))
            };
            let all = names.map(start);
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        for (name, output) in names.iter().zip(outputs) {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines: Vec<&str> = said.lines().filter(|line| line.contains("block 0")).collect();
            assert_eq!(lines.len(), 300, "{name}: {said}");
            for (count, line) in lines.iter().enumerate() {
                assert!(line.contains(&format!("of {name}: {count:5}|")), "{name}: {line}");
            }
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_lost_and_told() {
        let caps = Caps { print_bytes: 2000, ..Caps::default() };
        let output = Lease::start_with(100 * MIB, "", caps).output("prints_too_much", &[]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = between(&said, "[begin]", "[after]").trim_start();
        assert!(first.len() <= 2000 + 16 && first.contains("of a flood:     1|"), "{said}");
        let then = between(&said, "[after]", "[end]");
        assert_eq!(then.matches("of a flood:     2|").count(), 1, "{said}");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("bytes that kernels printed are lost"), "{errors}");
    }

    #[test]
    fn streams_and_contexts_are_as_with_the_driver() {
        ["host_functions", "own_streams", "contexts"].into_iter().for_each(both);
    }

    #[test]
    fn graphs_are_captured_built_changed_and_launched() {
        let lease = Lease::start(256 * MIB);
        ["captured", "built", "instantiated", "assembled", "told", "replaced", "led"]
            .into_iter()
            .for_each(|role| lease.run(role));
    }

    #[test]
    fn caps_hold_for_each_kind_and_what_is_given_back_is_there_again() {
        let caps = Caps {
            modules: 2,
            functions: 3,
            unpacked_bytes: 64 << 10,
            streams: 2,
            events: 2,
            allocations: 2,
            pools: 2,
            pinned_bytes: MIB,
            pinned_pieces: 2,
            ..Caps::default()
        };
        let lease = Lease::start_with(256 * MIB, "", caps);
        lease.run("caps");
        lease.wait_for("the session to end", |stats| stats.sessions == 0);
        lease.run("caps");
    }

    #[test]
    fn programs_run_over_rings_of_any_size() {
        for bytes in [2 << 20, 16 << 20] {
            let ring_bytes = bytes.try_into().expect("possible");
            let lease = Lease::start_with(256 * MIB, "", Caps { ring_bytes, ..Caps::default() });
            lease.run("streamed");
        }
    }

    #[test]
    fn records_are_as_long_as_the_configuration_says() {
        let record_bytes = (64 << 10).try_into().expect("possible");
        let caps = Caps { record_bytes, ..Caps::default() };
        let lease = Lease::start_with(256 * MIB, "", caps);
        ["vector_add", "rows", "boxes", "linking"].into_iter().for_each(|role| lease.run(role));
        let mut line = hostile::connect(lease.slot());
        line.send_code(64 << 10);
        line.send_code((64 << 10) + 1);
        assert!(line.was_ended());
        lease.run("vector_add");
    }

    /// A pool keeps what is freed; that is the lease's until there is no room without it.
    #[test]
    fn pools_are_charged_what_they_have_reserved() {
        let lease = Lease::start(64 * MIB);
        let mut tenant = lease.tenant("reserved");
        tenant.says("freed");
        assert_eq!(lease.stats().used.get(), 48 * MIB, "kept, and charged");
        tenant.go_on();
        tenant.says("taken");
        assert_eq!(lease.stats().used.get(), 40 * MIB, "given back for other memory");
        tenant.go_on();
        tenant.finish();
        lease.wait_for("the memory to come back", |stats| stats.used.get() == 0);
    }

    #[test]
    fn misuse_is_an_error_at_once() {
        Lease::start(100 * MIB).run("misuse");
    }

    #[test]
    fn a_tenant_that_writes_nonsense_ends_its_own_session_only() {
        let lease = Lease::start(100 * MIB);
        let mut other = lease.tenant("greedy");
        other.says("connected");
        for nonsense in hostile::ALL {
            let mut line = hostile::connect(lease.slot());
            nonsense(&mut line);
            assert!(line.was_ended(), "the worker let nonsense pass");
        }
        lease.wait_for("the sessions to end", |stats| stats.sessions == 1);
        other.go_on();
        assert_eq!(other.says("got"), "100");
        other.go_on();
        other.finish();
    }

    #[test]
    fn an_image_leads_nowhere_out_of_itself() {
        let lease = Lease::start(100 * MIB);
        let (bad, good) = hostile::loads(lease.slot());
        assert_eq!(bad, [Err(CuResult::INVALID_IMAGE); 3]);
        assert_eq!(good, Ok(()));
    }

    #[test]
    fn a_program_without_a_lease_is_told_why() {
        let lease = Lease::start(100 * MIB);
        lease.tenant_with("no_lease", &[("GPUZONE_SLOT", "")]).finish();
        lease.tenant_with("no_lease", &[("GPUZONE_SLOT", "/nonexistent")]).finish();
    }

    #[test]
    fn a_forked_child_has_no_gpu_and_its_parent_keeps_it() {
        Lease::start(100 * MIB).run("fork");
    }

    #[test]
    fn a_worker_keeps_kernels_out_of_its_memory_where_the_driver_would_let_them() {
        let lease = Lease::start_on(100 * MIB, "hmm = true");
        // Without us they reach it; a worker would not have begun.
        lease.run_without_us("reaches_the_host");
        lease.run("vector_add");
    }

    #[test]
    fn a_worker_says_what_is_wrong_with_its_driver() {
        let lease = Lease::start(100 * MIB);
        for (library, reason) in
            [("/nonexistent/libcuda.so.1", "/nonexistent/libcuda.so.1"), ("libc.so.6", "cuInit")]
        {
            let mut spec = lease.spec();
            spec.driver.cuda_library = PathBuf::from(library);
            let output = lease.spawn_worker(&spec).wait_with_output().expect("ended");
            assert_eq!(output.status.code(), Some(EXIT_DRIVER));
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or_default();
            assert!(last.contains(reason), "{said}");
        }
        let mut spec = lease.spec();
        spec.grants[0].gpu = "GPU-00000000-0000-0000-0000-000000000000".parse().expect("a UUID");
        let output = lease.spawn_worker(&spec).wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(EXIT_DRIVER));
        assert!(String::from_utf8_lossy(&output.stderr).contains("GPU-00000000"));
    }
}
