//! What the build makes of sources before a compiler sees them.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../build/source.rs"]
#[expect(dead_code, reason = "the build uses the rest")]
mod source;

use source::{Kernel, Language, Translated, translate};

fn kernel(text: &str, language: Language) -> (String, Kernel) {
    let Translated { text, mut kernels } = translate(text, language).unwrap();
    assert_eq!(kernels.len(), 1, "{text}");
    (text, kernels.remove(0))
}

fn refused(text: &str, language: Language) -> String {
    translate(text, language).err().unwrap()
}

#[test]
fn text_without_our_words_stays_as_it_is() {
    let text = "# 3 \"file.cu\"\ninline float twice(float x) { return 2 * x; }\n";
    for language in [Language::Cuda, Language::Metal] {
        let translated = translate(text, language).unwrap();
        assert_eq!(translated.text, text);
        assert!(translated.kernels.is_empty());
    }
}

#[test]
fn a_shared_variable_lies_between_guards_under_its_name() {
    let declared = |text: &str| translate(text, Language::Cuda).unwrap().text;
    assert_eq!(
        declared("{ SCONCE_SHARED float held[4 * (2 + 1)][8]; held[0][0] = 1; }"),
        "{ static struct { unsigned char guard_before[emulator::GUARD];  float held[4 * (2 + 1)][8]; \
         unsigned char guard_after[emulator::GUARD]; } guarded_held; \
         auto& held = guarded_held.held; emulator::Declared declared_held(\"held\", (void*)&held, \
         sizeof(held)); held[0][0] = 1; }"
    );
    // The attribute of an alignment goes with the variable.
    let aligned = declared("SCONCE_SHARED __attribute__((aligned(16))) half tile[16][16];");
    assert!(aligned.contains(";  __attribute__((aligned(16))) half tile[16][16];"), "{aligned}");
    assert!(aligned.contains("auto& tile = guarded_tile.tile;"), "{aligned}");
    let number = declared("SCONCE_SHARED unsigned count;");
    assert!(number.contains("Declared declared_count(\"count\", (void*)&count, sizeof(count));"));
    // Lines stay, so that a compiler's errors name those of the source.
    assert_eq!(declared("a\nSCONCE_SHARED float\n x[2];\nb").matches('\n').count(), 3);
}

#[test]
fn the_address_space_of_a_pointer_is_left_out() {
    for (pointer, expected) in [
        ("float sum(SCONCE_SHARED float* x, uint n) { }", "float sum( float* x, uint n) { }"),
        ("void f(SCONCE_SHARED const half4* x) { }", "void f( const half4* x) { }"),
        ("void f(SCONCE_SHARED float (&x)[32]) { }", "void f( float (&x)[32]) { }"),
        ("(SCONCE_SHARED float4*)held", "( float4*)held"),
        ("SCONCE_SHARED float* half_of = held + n;", " float* half_of = held + n;"),
        ("SCONCE_SHARED uint& first = held[0];", " uint& first = held[0];"),
    ] {
        assert_eq!(translate(pointer, Language::Metal).unwrap().text, expected);
    }
}

#[test]
fn several_variables_in_one_declaration_are_refused() {
    for declaration in [
        "SCONCE_SHARED float a[4], b[4];",
        "SCONCE_SHARED float a[4] = {0};",
        "SCONCE_SHARED float a{};",
    ] {
        for language in [Language::Cuda, Language::Metal] {
            let error = refused(declaration, language);
            assert!(error.contains("one variable at a time, found  float a"), "{error}");
        }
    }
    let nameless = refused("SCONCE_SHARED ;", Language::Cuda);
    assert!(nameless.starts_with("shared memory without a name"), "{nameless}");
}

#[test]
fn launch_bounds_are_those_of_the_source() {
    let bounds = |text: &str| kernel(text, Language::Cuda).1.threads_max;
    assert_eq!(bounds("SCONCE_KERNEL void f(int* x) { }"), None);
    assert_eq!(bounds("SCONCE_KERNEL void SCONCE_BOUNDS(64) f(int* x) { }").unwrap(), "64");
    // Blocks of a multiprocessor come second; the expression may be one, or a function's.
    let both = "SCONCE_KERNEL SCONCE_BOUNDS(max(2, 4) * 32, 2) void f(int* x) { }";
    assert_eq!(bounds(both).unwrap(), "max(2, 4) * 32");
    assert!(
        refused("SCONCE_KERNEL void SCONCE_BOUNDS(64 f", Language::Cuda).contains("not closed")
    );
}

#[test]
fn a_cuda_kernel_takes_as_many_arguments_as_it_has_parameters() {
    let text =
        "SCONCE_KERNEL void\nf(float* out, const Pair<int, float>* x,\n  unsigned n) { g(); }";
    let (text, kernel) = kernel(text, Language::Cuda);
    assert_eq!((kernel.name.as_str(), kernel.arguments), ("f", 3));
    assert_eq!(kernel.call, "emulator::call(f, arguments);");
    assert!(
        text.ends_with("void f(float* out, const Pair<int, float>* x,\n  unsigned n) { g(); }")
    );
    let none = translate("SCONCE_KERNEL void f() { }", Language::Cuda).unwrap();
    assert_eq!(none.kernels[0].arguments, 0);
    assert_eq!(refused("SCONCE_KERNEL void f;", Language::Cuda), "a kernel without parameters");
}

#[test]
fn parameters_of_metal_are_given_what_their_attributes_say() {
    let (text, kernel) = kernel(
        "SCONCE_KERNEL void f( float* out [[buffer(0)]], const float& eps [[ buffer(1) ]],\n\
         SCONCE_SHARED float* held [[SCONCE_SHARED(0)]], uint lane [[thread_index_in_simdgroup]]) {}",
        Language::Metal,
    );
    assert_eq!(
        kernel.call,
        "f(emulator::Buffer{arguments[0]}, emulator::Number{arguments[1]}, emulator::Dynamic{}, \
         emulated_parameters::thread_index_in_simdgroup());"
    );
    assert_eq!((kernel.name.as_str(), kernel.arguments), ("f", 2));
    assert_eq!(text, "void f( float* out , const float& eps ,\n float* held , uint lane ) {}");
}

#[test]
fn a_parameter_of_metal_without_an_attribute_is_refused() {
    let error = refused("SCONCE_KERNEL void f( float* out) {}", Language::Metal);
    assert_eq!(error, "f: what is given to the parameter `float* out`?");
    let error = refused("SCONCE_KERNEL void f( float* out [[buffer(n)]]) {}", Language::Metal);
    assert_eq!(error, "f: what is given to the parameter `float* out [[buffer(n)]]`?");
    // Two buffers in one place, and a place that none has, which a launch would count.
    let twice = "SCONCE_KERNEL void f( float* a [[buffer(0)]], float* b [[buffer(0)]]) {}";
    assert_eq!(refused(twice, Language::Metal), "f: two parameters are buffer 0");
    let gap = "SCONCE_KERNEL void f( float* a [[buffer(0)]], float* b [[buffer(2)]]) {}";
    assert_eq!(refused(gap, Language::Metal), "f: no parameter is buffer 1");
}
