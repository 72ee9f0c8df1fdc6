// The fibers behind cuda_runtime_api.h, and what the tests call through ctypes. Included by one translation unit for
// each op, behind its launch.cu and `using namespace` its own, with the kernels in `kKernels`.

#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cuda_runtime_api.h"

namespace emulator {

dim3 thread_index, block_index, grid_size;
int multiprocessors = 4;
int failing_call = 0, failing_code = 0, launches = 0;
cudaError_t last_error = cudaSuccess;

cudaError_t answer(bool fails) {
    if (!fails) return cudaSuccess;
    return last_error = static_cast<cudaError_t>(failing_code);
}

namespace {

enum State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

struct Fiber {
    ucontext_t context;
    jmp_buf jump;
    bool started;
    State state;
    int parity;
    Lane brought[2];
    std::vector<char> stack = std::vector<char>(64 * 1024);
};

std::vector<Fiber> fibers;
std::vector<Lane> gathered[2];
jmp_buf scheduler;
int current;
void (*entry)(void*);
void* entry_argument;
std::mt19937 random_order;

void fiber_main() {
    entry(entry_argument);
    fibers[current].state = kDone;
    _longjmp(scheduler, 1);
}

void wait(State state) {
    const int me = current;
    fibers[me].state = state;
    if (_setjmp(fibers[me].jump) == 0) _longjmp(scheduler, 1);
    current = me;
    thread_index = dim3(me);
}

void resume(int i) {
    current = i;
    thread_index = dim3(i);
    if (_setjmp(scheduler) != 0) return;
    Fiber& fiber = fibers[i];
    if (fiber.started) _longjmp(fiber.jump, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

// Whether the fibers [from, to) that are not done all wait so; then they are ready again.
bool release(int from, int to, State state) {
    bool any = false;
    for (int i = from; i < to; ++i) {
        if (fibers[i].state != state && fibers[i].state != kDone) return false;
        any = any || fibers[i].state == state;
    }
    for (int i = from; any && i < to; ++i)
        if (fibers[i].state == state) fibers[i].state = kReady;
    return any;
}

void run_block(int threads) {
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
        fiber.started = false;
        fiber.state = kReady;
        fiber.parity = 0;
    }
    std::vector<int> order(threads);
    for (int i = 0; i < threads; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random_order);
    for (;;) {
        bool moved = false;
        for (int i : order)
            if (fibers[i].state == kReady) resume(i), moved = true;
        for (int warp = 0; warp < threads; warp += 32) moved |= release(warp, warp + 32, kWaitsForWarp);
        if (release(0, threads, kWaitsForBlock)) moved = true;
        if (moved) continue;
        for (int i = 0; i < threads; ++i)
            if (fibers[i].state != kDone) {
                std::fprintf(stderr, "emulator: threads wait for each other\n");
                std::abort();
            }
        return;
    }
}

}  // namespace

int lane() { return current % 32; }

void wait_for_block() { wait(kWaitsForBlock); }

const Lane* exchange(const Lane& mine) {
    // Two sets of places in turns: nobody can be two exchanges ahead of a lane that still reads.
    const int parity = fibers[current].parity ^= 1;
    gathered[parity][current] = mine;
    wait(kWaitsForWarp);
    return &gathered[parity][current / 32 * 32];
}

void run(dim3 grid, int threads, void (*body)(void*), void* argument) {
    if (fibers.size() < static_cast<std::size_t>(threads)) fibers = std::vector<Fiber>(threads);
    for (auto& places : gathered) places.assign(threads, {});
    entry = body;
    entry_argument = argument;
    grid_size = grid;
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, z);
    std::shuffle(blocks.begin(), blocks.end(), random_order);
    for (const dim3& block : blocks) {
        block_index = block;
        run_block(threads);
    }
}

}  // namespace emulator

extern "C" {

void emulator_setup(unsigned seed, int multiprocessors) {
    emulator::random_order.seed(seed);
    emulator::multiprocessors = multiprocessors;
}

// From now on call 1 (current device), 2 (its attribute), 3 or 4 (first and second launch) fails, or with 0 none; `stale`
// is what an earlier call left behind.
void emulator_fail(int call, int code, int stale) {
    emulator::failing_call = call;
    emulator::failing_code = code;
    emulator::launches = 0;
    emulator::last_error = static_cast<cudaError_t>(stale);
}

int emulator_last_error() { return emulator::last_error; }

const char* emulator_check(const Problem* problem) { return check(*problem); }

int emulator_revision() { return kKernelRevision; }

// As cuda_op.py starts it; whether there is a kernel of this name.
bool emulator_start(const char* name, unsigned x, unsigned y, unsigned z, int threads, void** arguments) {
    for (const mtu::Named& each : kKernels)
        if (std::strcmp(each.name, name) == 0) return each.start(dim3(x, y, z), threads, arguments), true;
    return false;
}
}
