// A stand-in for the CUDA runtime: device memory is host memory, kernels do nothing, and calls are counted.
//
// Only functions whose results torch depends on are written here; build.py generates the rest, which return success.
// Copies of more than LARGEST_COPY bytes to the device are counted but not made: values on the device mean nothing.

#define __CUDA_API_VERSION_INTERNAL
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

typedef cudaError_t Error;

static const size_t PAGE = 2u << 20, LARGEST_COPY = 1u << 20, LARGEST_FILL = 1u << 16;
static const int DRIVER_VERSION = 13000;

// ---------------------------------------------------------------------------------------------------------- counters

enum { LAUNCHES, H2D, D2H, D2D, H2D_BYTES, D2H_BYTES, D2D_BYTES, SYNCS, ALLOCATIONS, BLAS, FILLS, PAGEABLE_H2D, COUNTERS };
static std::atomic<long long> counters[COUNTERS];

static size_t memory_bytes() {  // FAKE_GPU_GB: memory of the card, 80 by default
    static const char *gb = getenv("FAKE_GPU_GB");
    return (size_t)((gb ? atof(gb) : 80.0) * (1 << 20)) << 10;
}

extern "C" {
void fake_counts(long long *out, int reset) {
    for (int i = 0; i < COUNTERS; i++) {
        out[i] = counters[i];
        if (reset) counters[i] = 0;
    }
}

// what is captured into a CUDA graph is not launched; the whole graph is one launch each time
static cudaStream_t capturing = nullptr;  // the stream, while one is captured
static unsigned long long captures = 0;

static void count(int what, size_t number = 1) {
    if (!capturing) counters[what] += number;
}
void fake_blas() { count(BLAS); }
void fake_launch() { count(LAUNCHES); }

// ------------------------------------------------------------------------------------------------------------ memory

static std::mutex lock;
static std::map<char *, size_t> on_device, pinned;  // first byte -> size
static size_t device_bytes = 0;

static bool inside(std::map<char *, size_t> &blocks, const void *pointer) {
    std::lock_guard<std::mutex> guard(lock);
    auto block = blocks.upper_bound((char *)pointer);
    if (block == blocks.begin()) return false;
    --block;
    return (char *)pointer < block->first + block->second;
}

static Error allocate(void **pointer, size_t bytes) {
    bytes = (bytes + PAGE - 1) & ~(PAGE - 1);
    std::lock_guard<std::mutex> guard(lock);
    if (device_bytes + bytes > memory_bytes()) return cudaErrorMemoryAllocation;
    // pages are taken only when something is written to them, which kernels never do
    char *memory = (char *)mmap(0, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
    memory = (char *)(((size_t)memory + PAGE - 1) & ~(PAGE - 1));
    on_device[memory] = bytes;
    device_bytes += bytes;
    counters[ALLOCATIONS]++;
    *pointer = memory;
    return cudaSuccess;
}

Error cudaMalloc(void **p, size_t n) { return allocate(p, n); }
Error cudaMallocAsync(void **p, size_t n, cudaStream_t) { return allocate(p, n); }
Error cudaFree(void *pointer) {
    std::lock_guard<std::mutex> guard(lock);
    auto block = on_device.find((char *)pointer);
    if (block != on_device.end()) {
        munmap(pointer, block->second);
        device_bytes -= block->second;
        on_device.erase(block);
    }
    return cudaSuccess;
}
Error cudaFreeAsync(void *p, cudaStream_t) { return cudaFree(p); }
Error cudaMemGetInfo(size_t *free, size_t *total) {
    std::lock_guard<std::mutex> guard(lock);
    *total = memory_bytes();
    *free = *total - device_bytes;
    return cudaSuccess;
}
Error cudaHostAlloc(void **p, size_t n, unsigned) {
    if (posix_memalign(p, 4096, n)) return cudaErrorMemoryAllocation;
    std::lock_guard<std::mutex> guard(lock);
    pinned[(char *)*p] = n;
    return cudaSuccess;
}
Error cudaFreeHost(void *p) {
    {
        std::lock_guard<std::mutex> guard(lock);
        pinned.erase((char *)p);
    }
    free(p);
    return cudaSuccess;
}
Error cudaHostRegister(void *p, size_t n, unsigned) {
    std::lock_guard<std::mutex> guard(lock);
    pinned[(char *)p] = n;
    return cudaSuccess;
}
Error cudaHostUnregister(void *p) {
    std::lock_guard<std::mutex> guard(lock);
    pinned.erase((char *)p);
    return cudaSuccess;
}
Error cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeUnregistered;
    if (inside(on_device, p)) a->type = cudaMemoryTypeDevice, a->devicePointer = (void *)p;
    else if (inside(pinned, p)) a->type = cudaMemoryTypeHost, a->hostPointer = (void *)p;
    return cudaSuccess;
}

static void copy(void *to, const void *from, size_t bytes) {
    bool to_device = inside(on_device, to), from_device = inside(on_device, from);
    if (to_device && !from_device) {
        count(H2D);
        count(H2D_BYTES, bytes);
        if (!inside(pinned, from)) count(PAGEABLE_H2D);
        if (bytes > LARGEST_COPY) return;
    } else if (from_device && !to_device) {
        count(D2H);
        count(D2H_BYTES, bytes);
    } else if (from_device) {
        count(D2D);
        count(D2D_BYTES, bytes);
        if (bytes > LARGEST_FILL) return;
    }
    memcpy(to, from, bytes);
}
Error cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind) {
    copy(to, from, n);
    count(SYNCS);
    return cudaSuccess;
}
Error cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind, cudaStream_t) {
    copy(to, from, n);
    return cudaSuccess;
}
Error cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t n, cudaStream_t) {
    copy(to, from, n);
    return cudaSuccess;
}
Error cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                        cudaMemcpyKind, cudaStream_t) {
    for (size_t row = 0; row < height; row++)
        memcpy((char *)to + row * to_pitch, (char *)from + row * from_pitch, width);
    return cudaSuccess;
}
Error cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
Error cudaGetSymbolAddress(void **p, const void *) {
    static void *symbols = 0;
    if (!symbols) allocate(&symbols, 1 << 20);
    *p = symbols;
    return cudaSuccess;
}
Error cudaMemset(void *p, int value, size_t n) {
    count(FILLS);
    if (n <= LARGEST_FILL) memset(p, value, n);
    return cudaSuccess;
}
Error cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t) { return cudaMemset(p, value, n); }

// ----------------------------------------------------------------------------------------------------------- kernels

struct Configuration { dim3 grid, block; size_t shared; void *stream; };
static thread_local Configuration configurations[64];
static thread_local int depth = 0;
static void *no_module[64];

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    configurations[depth++ & 63] = {grid, block, shared, stream};
    return 0;
}
Error __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (depth) depth--;
    auto &pushed = configurations[depth & 63];
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *(void **)stream = pushed.stream;
    return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *) { return no_module; }
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterFunction(void **, const char *, char *, const char *, int, void *, void *, void *, void *, int *) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
char __cudaInitModule(void **) { return 1; }
Error __cudaGetKernel(void **kernel, const void *function) {
    *kernel = (void *)function;
    return cudaSuccess;
}
static Error launched() {
    count(LAUNCHES);
    return cudaSuccess;
}
Error __cudaLaunchKernel(void *, dim3, dim3, void **, size_t, void *) { return launched(); }
Error cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) { return launched(); }
Error cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) { return launched(); }
Error cudaLaunchCooperativeKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) { return launched(); }
Error cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}
Error cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned) {
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}
Error cudaFuncGetAttributes(cudaFuncAttributes *a, const void *) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->ptxVersion = a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 232448 - 1024;
    return cudaSuccess;
}
Error cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
Error cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
Error cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *, int, size_t) {
    *n = 2;
    return cudaSuccess;
}
Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *, int, size_t, unsigned) {
    *n = 2;
    return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------------------ device

Error cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
Error cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
Error cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
Error cudaDriverGetVersion(int *version) {
    *version = DRIVER_VERSION;
    return cudaSuccess;
}
Error cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
Error cudaGetDeviceProperties(cudaDeviceProp *p, int) {  // an H100's
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in for an H100");
    p->totalGlobalMem = memory_bytes();
    p->major = 9;
    p->minor = 0;
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = p->memPitch = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->regsPerBlock = p->regsPerMultiprocessor = p->totalConstMem = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerMultiprocessor = 233472;
    p->sharedMemPerBlockOptin = 232448;
    p->reservedSharedMemPerBlock = 1024;
    p->l2CacheSize = 52428800;
    p->memoryBusWidth = 5120;
    p->textureAlignment = 512;
    p->asyncEngineCount = 3;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->cooperativeLaunch = 1;
    p->clusterLaunch = p->hostRegisterSupported = p->memoryPoolsSupported = 1;
    return cudaSuccess;
}
Error cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: *value = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxBlockDimZ: *value = p.maxThreadsDim[2]; break;
        case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = p.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerBlockOptin; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = p.sharedMemPerMultiprocessor; break;
        case cudaDevAttrWarpSize: *value = p.warpSize; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerBlock; break;
        case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
        default: *value = 1;
    }
    return cudaSuccess;
}
Error cudaDeviceGetPCIBusId(char *text, int n, int) {
    strncpy(text, "0000:01:00.0", n);
    return cudaSuccess;
}
Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
Error cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return cudaSuccess;
}
Error cudaDeviceSynchronize() {
    counters[SYNCS]++;
    return cudaSuccess;
}

// ------------------------------------------------------------------------------- streams and events: always finished

static std::atomic<size_t> handles{0x1000};
static Error new_handle(void *handle) {
    *(void **)handle = (void *)(handles += 16);
    return cudaSuccess;
}
Error cudaStreamCreate(cudaStream_t *s) { return new_handle(s); }
Error cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return new_handle(s); }
Error cudaStreamCreateWithPriority(cudaStream_t *s, unsigned, int) { return new_handle(s); }
Error cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
Error cudaStreamGetPriority(cudaStream_t, int *priority) {
    *priority = 0;
    return cudaSuccess;
}
Error cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
Error cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
Error cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
Error cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    *status = capturing && stream == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
Error cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus *status, unsigned long long *id,
                               cudaGraph_t *, const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *nodes) {
    if (id) *id = captures;
    if (nodes) *nodes = 0;
    return cudaStreamIsCapturing(stream, status);
}
Error cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    capturing = stream;
    captures++;
    return cudaSuccess;
}
Error cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    capturing = nullptr;
    return new_handle(graph);
}
Error cudaGraphInstantiate(cudaGraphExec_t *graph, cudaGraph_t, unsigned long long) { return new_handle(graph); }
Error cudaGraphInstantiateWithFlags(cudaGraphExec_t *graph, cudaGraph_t, unsigned long long) {
    return new_handle(graph);
}
Error cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *nodes) {
    *nodes = 1;
    return cudaSuccess;
}
Error cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
    counters[LAUNCHES]++;
    return cudaSuccess;
}
Error cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) { return cudaSuccess; }
Error cudaEventCreate(cudaEvent_t *e) { return new_handle(e); }
Error cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return new_handle(e); }
Error cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
Error cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
Error cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
Error cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
Error cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
Error cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) {
    *ms = 1.0f;
    return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------------------ errors

Error cudaGetLastError() { return cudaSuccess; }
Error cudaPeekAtLastError() { return cudaSuccess; }
const char *cudaGetErrorString(Error e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "stand-in"; }
const char *cudaGetErrorName(Error) { return "stand-in"; }
Error cudaProfilerStart() { return cudaSuccess; }
Error cudaProfilerStop() { return cudaSuccess; }

static int nothing() { return 0; }
static int context_state(int, unsigned *flags, int *active) {
    *flags = 0;
    *active = 1;
    return 0;
}
static int current_context(void **context) {
    *context = no_module;
    return 0;
}
Error cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                       cudaDriverEntryPointQueryResult *status) {
    *function = (void *)nothing;
    if (!strcmp(name, "cuDevicePrimaryCtxGetState")) *function = (void *)context_state;
    if (!strcmp(name, "cuCtxGetCurrent")) *function = (void *)current_context;
    if (status) *status = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
}
