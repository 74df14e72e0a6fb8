/* Sparse LSTM and GRU layers and sparse matrix products on CPUs: the C interface.
 *
 * Weights are packed by lstmopt/sparsity/formats. Objects are made once, checked then, and used by any
 * number of threads at once. Nothing throws; nothing allocates after a thread's first call of a shape.
 */
#ifndef LSTMOPT_KERNELS_H
#define LSTMOPT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lstmopt_layer lstmopt_layer;
typedef struct lstmopt_matmul lstmopt_matmul;

/* A runtime's thread pool: run(pool, count, task, argument) calls task(argument, i) for every i below
 * count, on any threads, and returns when all are done. */
typedef struct {
  void (*run)(void* pool, size_t count, void (*task)(void* argument, size_t index), void* argument);
  void* pool;
  size_t workers; /* how many tasks are worth making; 0 and 1: none but the caller's thread */
} lstmopt_parallel;

enum { LSTMOPT_LSTM = 0, LSTMOPT_GRU = 1 };
enum { LSTMOPT_FORWARD = 0, LSTMOPT_REVERSE = 1, LSTMOPT_BIDIRECTIONAL = 2 };

/* A layer as ONNX's LSTM or GRU describes it: `gates` are 4 or 3. W and R are packed, that of the backward
 * direction after that of the forward one. Of a GRU whose reset comes before the product R is two matrices a
 * direction: {z, r} and {h}. Everything is copied. */
typedef struct {
  int cell;
  int direction;
  int64_t hidden_size; /* to be checked against the weights; 0: whatever they have */
  const void* w;
  size_t w_bytes;
  const void* r;
  size_t r_bytes;
  const float* b; /* [directions, 2 * gates * hidden], or NULL */
  size_t b_count;
  const float* p; /* [directions, 3 * hidden], or NULL; a GRU has none */
  size_t p_count;
  const char* activations; /* names with a space between them, three a direction, of a GRU two; NULL or "": defaults */
  const float* alpha;
  size_t alpha_count;
  const float* beta;
  size_t beta_count;
  float clip; /* 0: none */
  int input_forget;        /* of an LSTM */
  int linear_before_reset; /* of a GRU */
} lstmopt_layer_config;

/* One call, arrays in ONNX's layout 0. A GRU looks at neither c0 nor y_c. */
typedef struct {
  size_t steps;
  size_t batch;
  const float* x;         /* [steps, batch, input] */
  const int32_t* lengths; /* [batch], or NULL; values outside 0..steps are taken as the nearest inside */
  const float* h0;        /* [directions, batch, hidden], or NULL for zeros */
  const float* c0;
  float* y;   /* [steps, directions, batch, hidden], or NULL */
  float* y_h; /* [directions, batch, hidden], or NULL; of a sequence of length 0 zeros, whatever h0 is */
  float* y_c;
} lstmopt_layer_call;

/* Returns 0, or 1 and one line of text that says what is wrong. */
int lstmopt_layer_create(const lstmopt_layer_config* config, lstmopt_layer** layer, char* error, size_t error_bytes);
void lstmopt_layer_destroy(lstmopt_layer* layer);
size_t lstmopt_layer_directions(const lstmopt_layer* layer);
size_t lstmopt_layer_hidden(const lstmopt_layer* layer);
size_t lstmopt_layer_input(const lstmopt_layer* layer);

/* Returns 0, or 1 where memory ran out. `parallel` may be NULL. */
int lstmopt_layer_run(const lstmopt_layer* layer, const lstmopt_layer_call* call, const lstmopt_parallel* parallel);

/* Y [rows, units] = X [rows, columns] . W' + b. */
int lstmopt_matmul_create(const void* w, size_t w_bytes, const float* b, size_t b_count, lstmopt_matmul** product,
                          char* error, size_t error_bytes);
void lstmopt_matmul_destroy(lstmopt_matmul* product);
size_t lstmopt_matmul_units(const lstmopt_matmul* product);
size_t lstmopt_matmul_columns(const lstmopt_matmul* product);
int lstmopt_matmul_run(const lstmopt_matmul* product, size_t rows, const float* x, float* y,
                       const lstmopt_parallel* parallel);

/* The instruction sets that the kernels are made for, best first; which of them this CPU has; the one in
 * use. Objects made afterwards use the one that is set; NULL sets the best again. For tests. */
size_t lstmopt_isa_count(void);
const char* lstmopt_isa_name(size_t index);
int lstmopt_isa_usable(size_t index);
const char* lstmopt_isa(void);
int lstmopt_set_isa(const char* name);

#ifdef __cplusplus
}
#endif
#endif
