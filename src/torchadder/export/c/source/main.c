/* main.c: classifies image files with the net of @name@.h.
 *
 * Written by torchadder @version@.
 */
#include <stdio.h>
#include <string.h>

#include "@name@.h"

static uint8_t pixels[@NAME@_IMAGE_BYTES];
static int shows_logits;

static void classify(const char *name) {
  int32_t logits[@NAME@_CLASSES];
  @name@_set_pixels(pixels);
  @name@_run(logits);
  const int best = @name@_class(logits);
  printf("%s: %d %s", name, best, @name@_class_names[best]);
  for (int i = 0; shows_logits && i < @NAME@_CLASSES; ++i) printf(" %ld", (long)logits[i]);
  putchar('\n');
}

/* Any number of images, one behind the other, the channels of a pixel side by side. */
static int read_raw(const char *path) {
  char name[32];
  FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
  size_t size = 0;
  unsigned long number = 0;
  if (file == NULL) {
    fprintf(stderr, "%s: cannot be opened\n", path);
    return 1;
  }
  while ((size = fread(pixels, 1, sizeof pixels, file)) == sizeof pixels) {
    sprintf(name, "image %lu", number++);
    classify(name);
  }
  const int failed = ferror(file) || size > 0 || number == 0;
  if (failed) {
    fprintf(stderr, "%s: no multiple of %d bytes, as images of %d x %d x %d have\n", path,
            @NAME@_IMAGE_BYTES, @NAME@_HEIGHT, @NAME@_WIDTH, @NAME@_CHANNELS);
  }
  if (file != stdin) fclose(file);
  return failed;
}

/* The next number of a PNM header, after white space and comments; -1 if there is none. */
static long read_number(FILE *file) {
  long value = 0;
  int c = getc(file);
  while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
    while (c == '#' && c != EOF) {
      do c = getc(file);
      while (c != '\n' && c != EOF);
    }
    c = getc(file);
  }
  if (c < '0' || c > '9') return -1;
  for (; c >= '0' && c <= '9'; c = getc(file)) {
    value = 10 * value + (c - '0');
    if (value > 1000000) return -1;
  }
  /* One byte of white space ends the header. */
  return value;
}

/* A binary PGM (grey) or PPM (colour) file, 8 bits a channel. */
static int read_pnm(const char *path) {
  const int wanted = @NAME@_CHANNELS == 1 ? '5' : '6';
  FILE *file = fopen(path, "rb");
  const char *problem = NULL;
  if (file == NULL) {
    fprintf(stderr, "%s: cannot be opened\n", path);
    return 1;
  }
  if (getc(file) != 'P' || getc(file) != wanted) {
    problem = @NAME@_CHANNELS == 1 ? "no binary PGM file" : "no binary PPM file";
  } else {
    const long width = read_number(file), height = read_number(file), most = read_number(file);
    if (width < 1 || height < 1 || most != 255) {
      problem = "no header of an image with 8 bits a channel";
    } else if (width != @NAME@_WIDTH || height != @NAME@_HEIGHT) {
      fprintf(stderr, "%s: %ld x %ld pixels; the net takes %d x %d\n", path, width, height,
              @NAME@_WIDTH, @NAME@_HEIGHT);
      fclose(file);
      return 1;
    } else if (fread(pixels, 1, sizeof pixels, file) != sizeof pixels) {
      problem = "the file ends too early";
    }
  }
  fclose(file);
  if (problem != NULL) {
    fprintf(stderr, "%s: %s\n", path, problem);
    return 1;
  }
  classify(path);
  return 0;
}

/* Runs the net on made-up bytes and compares with what Python computed from the same. */
static int check(void) {
  static const int32_t wanted[@NAME@_CLASSES] = {@check_logits@};
  int32_t logits[@NAME@_CLASSES];
  uint32_t state = 1;
  uint8_t *input = @name@_input();
  for (int i = 0; i < @NAME@_IMAGE_BYTES; ++i) {
    state = (uint32_t)(1664525u * state + 1013904223u);
    input[i] = (uint8_t)(state >> 24);
  }
  @name@_run(logits);
  for (int i = 0; i < @NAME@_CLASSES; ++i) {
    if (logits[i] != wanted[i]) {
      fprintf(stderr, "check: logit %d is %ld, not %ld\n", i, (long)logits[i], (long)wanted[i]);
      return 1;
    }
  }
  puts("check: all logits are right");
  return 0;
}

int main(int argc, char **argv) {
  int failed = 0;
  int is_raw = 0;
  int done = 0;
  for (int i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--logits") == 0) {
      shows_logits = 1;
    } else if (strcmp(argv[i], "--raw") == 0) {
      is_raw = 1;
    } else if (strcmp(argv[i], "--check") == 0) {
      failed |= check();
      ++done;
    } else {
      failed |= is_raw ? read_raw(argv[i]) : read_pnm(argv[i]);
      ++done;
    }
  }
  if (done == 0) {
    fprintf(stderr,
            "usage: classify [--logits] IMAGE.@pnm@ ...\n"
            "       classify [--logits] --raw FILE   (images of %d bytes each; - reads stdin)\n"
            "       classify --check                 (compares this machine with Python)\n",
            @NAME@_IMAGE_BYTES);
    return 2;
  }
  return failed;
}
