//! The library under `cudarc`, a client that knows nothing of simulation.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

mod support;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use support::isolated;

const VECTOR_ADD: &str = include_str!("../../kernels/ptx/vector_add.ptx");

#[test]
fn cudarc_adds_vectors() {
    isolated("cudarc_adds_vectors", || {
        assert_eq!(CudaContext::device_count().unwrap(), 2);
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.name().unwrap(), "Simulated A");
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        assert_eq!(context.total_mem().unwrap(), 64 << 20);
        let stream = context.new_stream().unwrap();
        let module = context.load_module(Ptx::from_src(VECTOR_ADD)).unwrap();
        let add = module.load_function("vector_add").unwrap();

        let n: u32 = 10_007;
        let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| 2.0 * i as f32).collect();
        let (da, db) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
        let mut dc = stream.alloc_zeros::<f32>(a.len()).unwrap();
        let start = stream.record_event(Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT));
        let start = start.unwrap();
        let mut launch = stream.launch_builder(&add);
        launch.arg(&mut dc).arg(&da).arg(&db).arg(&n);
        // SAFETY: the arguments are those of the kernel.
        unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.unwrap();
        let end = stream.record_event(Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT));
        let sum = stream.clone_dtoh(&dc).unwrap();
        assert!(sum.iter().zip(&a).all(|(sum, a)| *sum == 3.0 * a));
        assert!(start.elapsed_ms(&end.unwrap()).unwrap() > 0.0);
    });
}

#[test]
fn cudarc_hears_why_a_module_is_not_loaded() {
    isolated("cudarc_hears_why_a_module_is_not_loaded", || {
        let context = CudaContext::new(0).unwrap();
        let error = context.load_module(Ptx::from_src("not PTX")).unwrap_err();
        assert!(format!("{error:?}").contains("INVALID_IMAGE"), "{error:?}");
        let text = VECTOR_ADD.replace("add.f32", "frobnicate.f32");
        let error = context.load_module(Ptx::from_src(text)).unwrap_err();
        assert!(format!("{error:?}").contains("INVALID_PTX"), "{error:?}");
    });
}
