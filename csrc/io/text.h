/* Appending to an io_text: the only string building the backends do. Text that does not fit is cut, never
 * spilled. */
#ifndef STOQ_IO_TEXT_H
#define STOQ_IO_TEXT_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "io.h"

__attribute__((format(printf, 2, 3))) static inline void io_text_add(struct io_text *t, const char *format,
                                                                     ...) {
    if (t == NULL) {
        return;
    }
    size_t used = strnlen(t->text, sizeof t->text - 1);
    va_list args;
    va_start(args, format);
    vsnprintf(t->text + used, sizeof t->text - used, format, args);
    va_end(args);
}

static inline void io_text_clear(struct io_text *t) {
    if (t != NULL) {
        t->text[0] = '\0';
    }
}

#endif
